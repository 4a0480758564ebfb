// Live.
import { html, useEffect, useRef, useState, about, lines, usePoll, num, span, time, date, minute, state, to, go, filters, Field, Select, State, Json, Problem, Problems, cut, Table } from '/base.js'

const kinds = [['delivered,dead,retry', 'delivered, retry, dead'], ['delivered,dead,dropped,retry', 'every outcome'], ['', 'everything'], ['accepted'], ['delivered'], ['dropped'], ['retry'], ['dead']]
const kept = 100

export function Live({ params }) {
 const { value: status, error } = usePoll('/v1/status', 1)
 return html`<h1>Live</h1><${Problem} error=${error} />
 ${status ? html`<div class=${error ? 'grey' : ''}><${Tiles} status=${status} /></div>` : html`<p>Asking the daemon …</p>`}
 <${Chart} minutes=${params.span === 'day'} ceiling=${status ? status.ceiling : 0} params=${params} />
 <${Feed} params=${params} />`
}

const tone = { idle: 'good', delivering: 'good', paused: 'bad' }
const Tile = ({ name, value, tone, of, is, children }) => html`<section><span>${name}</span><b class=${tone}>${value}</b>${of && html`<meter aria-label=${name} max=${of} value=${is}></meter>`}<span>${children}</span></section>`
function Tiles({ status }) {
 const { quota } = status, now = state(status)
 return html`<div class="tiles">
 <${Tile} name="Delivery" value=${now} tone=${tone[now] || 'warn'}>${status.next_try_in_s != null ? 'tries again in ' + span(status.next_try_in_s) : status.last_delivered ? 'last delivery ' + date(status.last_delivered) : 'nothing delivered yet'}<//>
 <${Tile} name="Delivery rate" value=${num(status.rate) + ' /s'} of=${status.ceiling} is=${status.rate}>at most ${num(status.ceiling)}${status.pace < status.ceiling ? ', now ' + num(status.pace) : ''}<//>
 <${Tile} name="Requests of the day" value=${num(quota.used)} of=${quota.limit} is=${quota.used}>${num(quota.left)} of ${num(quota.limit)} left${quota.free_in_s > 0 ? ', free in ' + span(quota.free_in_s) : ''}<//>
 <${Tile} name="Backlog" value=${num(status.pending)}>${status.oldest_pending_age_s == null ? 'nothing waits' : 'oldest ' + span(status.oldest_pending_age_s)}<//>
 <${Tile} name="Time to drain" value=${status.pending ? span(status.drain_s) : '0 s'}>${status.drain_s == null && status.pending ? 'unknown while paused' : 'if nothing more arrives'}<//>
 <${Tile} name="Accepted in all" value=${num(status.accepted)}>delivered ${num(status.delivered)}, dropped ${num(status.dropped)}, <a href=${to('dead')}>dead ${num(status.dead)}</a><//></div>
 <${Problems} status=${status} most=${5} />
 ${status.last_problem && !status.problems.some(row => row.message === status.last_problem.message) && html`<p class="soft">Last problem, ${date(status.last_problem.when)}: ${cut(status.last_problem.message, 400)}</p>`}`
}

const series = [['accepted', '--soft'], ['delivered', '--good'], ['dead', '--bad']]
function Chart({ minutes, ceiling, params }) {
 const place = useRef()
 const { value } = usePoll('/v1/series', minutes ? 30 : 2, [minutes])
 const ring = value && value[minutes ? 'minutes' : 'seconds']
 useEffect(() => {
  if (!ring) return
  const css = getComputedStyle(document.documentElement), color = name => css.getPropertyValue(name)
  const x = ring.accepted.map((_, index) => ring.start_s + index * ring.step_s), end = ring.start_s + x.length * ring.step_s
  const axis = { stroke: color('--soft'), grid: { stroke: color('--line'), width: 1 } }, points = { show: false }
  const plot = new window.uPlot({
   width: place.current.clientWidth, height: 190, legend: points, cursor: points, padding: [8, 24, 0, 0],
   scales: { x: { range: [end - (minutes ? 86400 : 600), end] }, y: { range: (_, min, max) => [0, Math.max(1, max * 1.1)] } },
   axes: [{ ...axis, space: 70, size: 30, values: (_, ticks) => ticks.map(at => minute.format(at * 1000)) }, axis],
   series: [{}, ...series.map(([, name]) => ({ stroke: color(name), width: 2, points })), { stroke: color('--warn'), dash: [6, 4], points }]
  }, [x, ...series.map(([name]) => ring[name].map(count => count / ring.step_s)), x.map(() => ceiling)], place.current)
  return () => plot.destroy()
 }, [ring, ceiling])
 const words = ring ? series.map(([name]) => name + ' ' + num((ring[name].at(-1) || 0) / ring.step_s)).join(', ') : ''
 const link = (span, text) => html`<a href=${to('live', { ...params, span })} aria-current=${minutes === !!span ? 'true' : undefined}>${text}</a>`
 return html`<section><div class="row"><h2>Events per second</h2>${link('', '10 minutes')}${link('day', '24 hours')}
 <span class="legend">${[...series, ['ceiling', '--warn']].map(([name, color]) => html`<span><i style=${{ background: 'var(' + color + ')' }}></i>${name}</span>`)}</span></div>
 <div class="chart" ref=${place} role="img" aria-label=${'Newest: ' + words}></div></section>`
}

function Feed({ params }) {
 const [rows, setRows] = useState([])
 const [sample, setSample] = useState()
 const [open, setOpen] = useState()
 const [held, setHeld] = useState(false)
 const [error, fail] = useState()
 const hold = useRef(false), waiting = useRef([])
 hold.current = held || open != null
 const what = params.what === undefined ? kinds[0][0] : params.what === 'all' ? '' : params.what
 useEffect(() => {
  let stop = new AbortController(), over = false, timer
  waiting.current = []; setRows([]); setOpen(); setHeld()
  const run = async () => {
   clearTimeout(timer)
   if (over || document.hidden) return
   stop = new AbortController()
   try {
    for await (const record of lines('/v1/live', { what, name: params.name, user: params.user, text: params.text }, stop.signal)) {
     fail()
     if (record.sample) { setSample(record.sample); if (hold.current) continue }
     else { record.key = record.at + '/' + record.what + '/' + (record.id || record.messageId); waiting.current.unshift(record); waiting.current.length = Math.min(waiting.current.length, kept); continue }
     if (waiting.current.length) { const fresh = waiting.current; waiting.current = []; setRows(old => [...fresh, ...old].slice(0, kept)) }
    }
   } catch (e) { if (!over && e.name !== 'AbortError') fail(e) }
   if (!over && !document.hidden) timer = setTimeout(run, 2000)
  }
  const visible = () => document.hidden ? stop.abort() : run()
  document.addEventListener('visibilitychange', visible)
  run()
  return () => { over = true; clearTimeout(timer); stop.abort(); document.removeEventListener('visibilitychange', visible) }
 }, [what, params.name, params.user, params.text])
 const search = event => { const form = filters(event); go('live', { ...form, what: form.what === kinds[0][0] && (form.name || form.user || form.text) ? kinds[1][0] : form.what || 'all', span: params.span }) }
 return html`<section><h2>Feed</h2>
 <form onSubmit=${search} role="search"><${Select} label="Show" name="what" value=${what} options=${kinds} /><${Field} label="Name" name="name" value=${params.name} />
 ${!about.hide_bodies && html`<${Field} label="User" name="user" value=${params.user} /><${Field} label="Text in the event" name="text" value=${params.text} />`}
 <button class="main">Filter</button><button type="button" aria-pressed=${!!held} onClick=${() => setHeld(!held)}>${held ? 'Continue' : 'Hold'}</button></form>
 <p class="soft">${sample ? html`A sample: ${num(sample.shown)} of ${num(sample.matched)} that match and ${num(sample.seen)} in all in the last second. Filters look at every event. <a href=${to('events', { name: params.name, user: params.user })}>Earlier events</a>` : 'Waiting for the daemon …'}
 ${open != null ? ' The list holds still while a row is open.' : ''}</p><${Problem} error=${error} />
 <${Table} label="Sampled events" heads=${['Time', 'Outcome', 'Name', '~User', 'Answer']}>${rows.map(row => html`<${Row} key=${row.key} row=${row} open=${open === row.key} toggle=${() => setOpen(open === row.key ? null : row.key)} />`)}<//>
 ${!rows.length && html`<p class="soft">Nothing yet. Events appear here as they happen.</p>`}</section>`
}
function Row({ row, open, toggle }) {
 return html`<tr class=${open ? 'on' : ''}><td class="t">${time(row.at)}</td><td><${State} what=${row.what} reason=${row.reason} /></td>
 <td>${about.hide_bodies ? cut(row.name) : html`<button class="link" aria-expanded=${!!open} onClick=${toggle}>${cut(row.name) || '(no name)'}</button>`}</td><td class="wide">${cut(row.user, 40)}</td><td>${row.status || ''}${row.attempts > 1 ? ' at attempt ' + row.attempts : ''}</td></tr>
 ${open && html`<tr><td colspan="5"><div class="three"><${Json} title="In" value=${row.event} /><${Json} title=${'Sent' + (row.request ? ': ' + row.request : '')} value=${row.payload} />
 <div><h3>Answered</h3><p>${row.status ? 'PX answered ' + row.status : row.what === 'accepted' ? 'not sent yet' : 'nothing was sent'}</p>${row.detail && html`<p>${cut(row.detail, 1000)}</p>`}${row.id && html`<p><a href=${to('events', { id: row.id })}>The whole story of event ${row.id}</a></p>`}</div></div></td></tr>`}`
}
