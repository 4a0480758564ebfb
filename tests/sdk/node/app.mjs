// An app with one of the Node SDKs: `node app.mjs PACKAGE URL GZIP COUNT NAME`. Like ../python_app.py, where the rest is said.

const [packageName, url, gzip, countText, name] = process.argv.slice(2);
const count = Number(countText);
const kinds = ["identify", "track", "page", "screen", "group", "alias"];
const failed = [];
let told = 0;

const sdk = await import(packageName);
const rudder = packageName.includes("rudder");
const client = rudder
  ? new sdk.default("any", {
      dataPlaneUrl: url,
      gzip: gzip === "gzip",
      flushInterval: 100,
      logLevel: "error",
      errorHandler: () => {},
    })
  : new sdk.Analytics({ writeKey: "any", host: url, flushInterval: 100 });
if (!rudder) client.on("error", () => {});

const sleep = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

function fields(kind, number) {
  const userId = `u${number % 50}`;
  const messageId = `${name}-${kind}-${number}`;
  return {
    identify: { userId, messageId, traits: { plan: "pro", n: number } },
    track: { userId, messageId, event: "Feature Used", properties: { n: number } },
    page: { userId, messageId, category: "Docs", name: "Start", properties: { n: number } },
    screen: { userId, messageId, category: "Docs", name: "Start", properties: { n: number } },
    group: { userId, messageId, groupId: `a${number % 10}`, traits: { n: number } },
    alias: { userId, messageId, previousId: `old${number}` },
  }[kind];
}

for (let number = 0; number < count; number += 1) {
  const kind = kinds[number % kinds.length];
  client[kind](fields(kind, number), (error) => {
    told += 1;
    if (error) failed.push(`${name}-${kind}-${number}`);
  });
  if (number === Math.floor(count / 2)) console.log("half");
  if (number % 20 === 0) await sleep(20);
}
if (!rudder) await client.closeAndFlush({ timeout: 30000 });
for (let wait = 0; told < count && wait < 3000; wait += 1) {
  if (rudder) await client.flush().catch(() => {});
  await sleep(10);
}
if (told < count) throw new Error(`${count - told} calls were never told their outcome`);
console.log(JSON.stringify(failed));
process.exit(0);
