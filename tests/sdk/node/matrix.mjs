// An app with one of the Node SDKs: `node matrix.mjs SCENARIO`; the page above says what a scenario is.
import { readFileSync } from "node:fs";

const scenario = JSON.parse(readFileSync(process.argv[2], "utf8"));
const rudder = scenario.sdk === "rudder";
const sdk = await import(rudder ? "@rudderstack/rudder-sdk-node" : "@segment/analytics-node");
const failed = new Set();
const refused = new Set();
let told = 0;

function client(url) {
  if (rudder) {
    return new sdk.default(scenario.key, {
      dataPlaneUrl: url,
      gzip: scenario.gzip,
      flushAt: scenario.batch,
      flushInterval: 100,
      logLevel: "error",
      errorHandler: () => {},
    });
  }
  const made = new sdk.Analytics({
    writeKey: scenario.key,
    host: url,
    maxEventsInBatch: scenario.batch,
    flushInterval: 100,
  });
  made.on("error", () => {});
  return made;
}

const sleep = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));
const clients = scenario.urls.map(client);

async function work(share) {
  for (const call of share) {
    const { type, timestamp, ...fields } = call;
    for (const one of clients) {
      try {
        one[type]({ ...fields, timestamp: new Date(timestamp) }, (error) => {
          told += 1;
          if (error) failed.add(call.messageId);
        });
      } catch (error) {
        told += 1;
        refused.add(call.messageId);
        console.error(`${call.messageId}: ${error}`.slice(0, 300));
      }
    }
    made += 1;
    if (made === Math.ceil(scenario.calls.length / 2)) console.log("half");
    await sleep(scenario.pause_s * 1000);
  }
}

let made = 0;
// "Parallel callers" are tasks: Node has one thread.
await Promise.all(
  Array.from({ length: scenario.threads }, (_, k) => work(scenario.calls.filter((_, n) => n % scenario.threads === k))),
);
await sleep(scenario.linger_s * 1000);
const began = performance.now();
for (const one of clients) {
  if (!rudder) await one.closeAndFlush({ timeout: 60000 });
}
while (told < scenario.calls.length * clients.length) {
  if (rudder) for (const one of clients) await one.flush().catch(() => {});
  await sleep(10);
}
console.log(
  JSON.stringify({ failed: [...failed], refused: [...refused], shutdown_s: (performance.now() - began) / 1000 }),
);
process.exit(0);
