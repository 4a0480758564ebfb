// Products, Reconcile, Health.
import { html, useState, useTry, about, get, post, usePoll, num, span, size, date, time, state, to, go, filters, Field, Pre, Problem, Problems, download, cut, Table } from '/base.js'
import { Saver, useFile } from '/mapping.js'

const rest = ms => new Promise(done => setTimeout(done, ms))
export function Products() {
 const { file, toml, edit, load, error } = useFile()
 const { value: config, error: unread } = usePoll('/v1/config', 3)
 const [key, setKey] = useState('')
 const [story, setStory] = useState([])
 const add = async event => {
  const { product } = filters(event), made = 'wk_' + [...crypto.getRandomValues(new Uint8Array(16))].map(byte => byte.toString(16).padStart(2, '0')).join('')
  if (await edit([{ path: ['source', '-'], value: { write_key: made, property_key: product } }])) setKey(made)
 }
 const test = async source => {
  const say = text => setStory(old => [...old, text]), name = 'px-sidecar test', user = 'px-sidecar-test', at = Date.now()
  setStory([])
  try {
   const sent = await post('/v1/send', { source, event: { type: 'track', event: name, userId: user, timestamp: new Date(at).toISOString(), properties: { test: true } } })
   say('Accepted and on disk: ' + sent.messageId)
   for (let tries = 0; tries < 30; tries++) {
    const [event] = (await get('/v1/events', { message_id: sent.messageId, limit: 1 })).events
    if (event && event.state !== 'pending') {
     say(event.state + (event.status ? ': PX answered ' + event.status : '') + (event.reason ? ': ' + event.reason : ''))
     if (event.state !== 'delivered') return
     const { mapped: { requests: [{ body }] } } = await get('/v1/events/' + event.id)
     for (let turn = 0; turn < 10; turn++) {
      if ((await get('/v1/verify', { name: body.eventName, user: body.identifyId, date_ms: body.date })).found) return say('Read back: PX shows the event.')
      await rest(3000)
     }
     return say('PX accepted the event, but does not show it yet; some plans require its name to be registered.')
    }
    await rest(1000)
   }
   say('Still pending; Live shows why.')
  } catch (e) { say(e.message) }
 }
 const sources = config ? [{ property_key: config.px.property_key, default: true }, ...config.source] : []
 return html`<h1>Products</h1><${Problem} error=${error || unread} /><${Table} label="Products in force" heads=${['Property key', 'Write key', 'Test']}>
 ${sources.map((source, index) => html`<tr><td class="t">${source.property_key}</td><td>${source.default ? sources[1] ? 'none, over the Unix socket only' : 'none needed' : 'set, not shown'}</td><td>${!about.read_only && html`<button onClick=${() => test(index ? index - 1 : null)}>Send a test event</button>`}</td></tr>`)}<//><div role="status">${story.map(text => html`<p>${text}</p>`)}</div>
 ${!about.read_only && file && html`<section><h2>Add a product</h2><p class="soft">Take its property key from PX (Administration, Products), add and save it here, give the write key to the app, send a test event.</p>
 <form onSubmit=${add}><${Field} label="Property key" name="product" placeholder="AP-XXXXXXXXXX-2" required /><button>Add</button></form>${key && html`<p role="status">Write key for the app, shown only now: <code>${key}</code></p>`}<${Saver} file=${file} toml=${toml} onSaved=${load} /></section>`}`
}

export function Reconcile({ params }) {
 const [busy, setBusy] = useState(false)
 const [found, setFound] = useState()
 const [error, attempt] = useTry()
 const ask = async event => {
  const form = filters(event)
  go('reconcile', form); setBusy(true)
  await attempt(async () => setFound(await get('/v1/reconcile', form)))
  setBusy(false)
 }
 const verdict = row => row.px == null ? 'not asked' : row.px < row.delivered ? num(row.delivered - row.px) + ' missing' : row.px > row.delivered ? num(row.px - row.delivered) + ' more' : 'equal'
 return html`<h1>Reconcile</h1><p class="soft">What this host delivered beside what PX says it has. The newest 15 minutes are left out, because PX shows events late.</p>
 <form onSubmit=${ask}><${Field} label="Hours back" name="hours" type="number" min="1" max="4560" value=${params.hours || '24'} /><button class="main" disabled=${busy}>${busy ? 'Asking PX …' : 'Ask PX'}</button></form><${Problem} error=${error} />
 ${found && html`<div><p class="soft">${date(found.since_ms)} to ${date(found.until_ms)}${found.complete_since_ms > found.since_ms ? '. The history of this host begins ' + date(found.complete_since_ms) : ''}</p>${found.problem && html`<p class="note">${found.problem}</p>`}
 <${Table} label="Counts" heads=${['Name in PX', '#Delivered', '#In PX', 'Verdict']}>${found.names.map(row => html`<tr><td>${cut(row.name, 100)}</td><td class="n">${num(row.delivered)}</td><td class="n">${num(row.px)}</td><td class=${row.px != null && row.px < row.delivered ? 'bad' : ''}>${verdict(row)}</td></tr>`)}<//>${found.left_out > 0 && html`<p>And ${num(found.left_out)} more names.</p>`}${!found.names.length && html`<p class="soft">Nothing was delivered then.</p>`}</div>`}`
}

function Fleet() {
 const { value, error } = usePoll('/v1/fleet', 5)
 return html`<section><h2>Fleet</h2><${Problem} error=${error || value && (value.error || value.fleet.problem)} />${value && html`<p>${value.fleet.name}: this host is ${value.fleet.state}; all share ${num(value.fleet.rate)} per second, ${num(value.fleet.used)} requests of the day are used.</p>
 ${value.members && html`<${Table} label="Members" heads=${['Host', 'State', '#Slots', '#Alone per second']}>${value.members.map(row => html`<tr><td>${cut(row.host)}${row.this ? ' (this host)' : ''}</td><td>${row.connected ? 'connected' : 'absent'}</td><td class="n">${num(row.granted)}</td><td class="n">${num(row.alone_per_second)}</td></tr>`)}<//>`}`}</section>`
}
export function Health() {
 const { value: status, error } = usePoll('/v1/status', 2)
 const { value: checks, error: unchecked } = usePoll('/v1/checks', 0)
 const { value: log } = usePoll('/v1/log', 5)
 const { value: audit } = usePoll('/v1/audit', 5)
 const [failed, attempt] = useTry()
 const turn = verb => attempt(() => post('/v1/' + verb))
 const bundle = async () => {
  const parts = { made: new Date().toISOString(), checks, log, audit }
  for (const name of ['status', 'series', 'config', 'dead/groups']) parts[name] = await get('/v1/' + name).catch(e => e.message)
  // Limits name users; PX's words and refused calls quote events.
  download('px-sidecar-support.json', [JSON.stringify(parts, (key, value) => /slowest_user|warnings|last_message/.test(key) || value?.severity === 'limit' ? null : typeof value === 'string' ? value.replace(/(PX answered \d+) \(.*\)|( PX said| The last).*/gs, '$1') : value, 1)])
 }
 const paused = status && status.state === 'paused'
 return html`<h1>Health</h1><${Problem} error=${error || failed} />
 ${status && html`<section><h2>Delivery: ${state(status)}</h2><${Problems} status=${status} /><p class="soft">Version ${status.version}, running for ${span(status.uptime_s)}; outbox ${size(status.outbox.bytes)} of ${size(status.outbox.max_bytes)}.</p>
 <div class="row">${!about.read_only && html`<button onClick=${() => turn(paused ? 'resume' : 'pause')}>${paused ? 'Resume delivery' : 'Pause delivery'}</button><button onClick=${() => turn('reload')}>Reload configuration</button>`}<button onClick=${bundle}>Support bundle</button><span class="soft">without secrets and bodies</span></div></section>`}
 ${status && status.fleet && html`<${Fleet} />`}
 <div class="two"><section><h2>Checks</h2>${checks ? checks.findings.map(check => html`<p><b class=${{ ok: 'good', warning: 'warn', error: 'bad' }[check.level]}>${check.level}</b> ${check.what}: ${check.message}</p>`) : html`<p class="soft">${unchecked?.message || 'Checking …'}</p>`}</section>
 <section><h2>Who changed what</h2>${audit && audit.changes.map(row => html`<p>${date(row.at_ms)} <b>${row.action}</b> ${cut(row.detail, 200)} <span class="soft">${row.who}</span></p>`)}${audit && !audit.changes.length && html`<p class="soft">Nothing was changed yet.</p>`}</section></div>
 <section><h2>Log</h2><${Pre} label="Log lines" lines=${log && log.lines.length ? log.lines.slice(-200).map(line => time(line.time_ms) + ' ' + line.level + ' ' + line.message) : ['No lines yet.']} /></section>`
}
