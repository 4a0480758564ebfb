// Events.
import { html, useEffect, useRef, useState, useTry, about, get, num, date, to, go, filters, Field, Select, State, Json, Problem, cut, Table } from '/base.js'

const states = [['', 'any state'], ['pending'], ['delivered'], ['dropped'], ['dead']]
export function Events({ params }) {
 return params.id ? html`<${Story} key=${params.id} id=${params.id} />` : html`<${List} params=${params} />`
}
function List({ params }) {
 const [page, setPage] = useState({ events: [] })
 const [busy, setBusy] = useState(true)
 const [instead, setInstead] = useState()
 const [error, attempt] = useTry()
 const turn = useRef(0)
 const load = async (before, old) => {
  const { since, until, ...which } = params, mine = ++turn.current
  setBusy(true); setPage({ events: old, next: before })
  await attempt(async () => {
   // An empty page can have a successor.
   for (let tries = 0, events = old; tries < 20; tries++) {
    const answer = await get('/v1/events', { ...which, since_ms: since && +new Date(since), until_ms: until && +new Date(until), before, limit: 50 })
    if (mine !== turn.current) return // a newer search runs
    events = [...events, ...answer.events]; before = answer.next
    setPage({ events, next: before })
    if (!before || answer.events.length) break
   }
  })
  if (mine === turn.current) setBusy(false)
 }
 const none = !busy && !error && !page.events.length && !page.next
 useEffect(() => {
  let over = false
  setInstead()
  if (none && !about.hide_bodies && (params.name || params.user || params.message_id)) attempt(async () => { const found = await get('/v1/trace', { event: params.name, user: params.user, instead: true }); over || setInstead(found.instead) })
  return () => { over = true }
 }, [none, JSON.stringify(params)])
 useEffect(() => { load(undefined, []) }, [JSON.stringify(params)])
 const search = event => { const { id, ...form } = filters(event); go('events', id ? { id } : form) }
 return html`<h1>Events</h1><form role="search" onSubmit=${search}><${Select} label="State" name="state" value=${params.state} options=${states} /><${Field} label="Name" name="name" value=${params.name} />
 ${!about.hide_bodies && html`<${Field} label="User" name="user" value=${params.user} /><${Field} label="Message id" name="message_id" value=${params.message_id} /><${Field} label="Number" name="id" inputmode="numeric" pattern="[0-9]*" />`}<${Field} label="From" name="since" type="datetime-local" value=${params.since} /><${Field} label="To" name="until" type="datetime-local" value=${params.until} /><button class="main">Search</button></form><${Problem} error=${error} />
 ${page.events.length > 0 && html`<${Table} label="Events found" heads=${['#Number', 'Received', 'State', 'Name', '~User', '~Settled']}>${page.events.map(row => html`<tr><td class="n">${about.hide_bodies ? row.id : html`<a href=${to('events', { id: row.id })}>${row.id}</a>`}</td><td class="t">${date(row.received_ms)}</td><td><${State} what=${row.state} reason=${row.reason} /></td><td>${cut(row.name, 100)}</td><td class="wide">${cut(row.user, 60)}</td><td class="wide t">${date(row.settled_ms)}</td></tr>`)}<//>`}
 ${!page.events.length && html`<p class="soft" role="status">${busy ? 'Searching …' : none ? 'No event found. Delivered and dropped ones are shown for outbox.keep_delivered.' : page.next && 'None yet.'}</p>`}${instead && html`<${Instead} ...${instead} user=${params.user} />`}
 ${page.next && html`<button disabled=${busy} onClick=${() => load(page.next, page.events)}>Older events</button>`}`
}
function Instead({ names = [], newest_names = [], same_user = [], refused, user }) {
 return html`<p>${names.length ? 'Names like it' : 'Newest names'}: ${[...names, ...newest_names].map(row => html`<a href=${to('events', { name: row.name })}>${cut(row.name || row.type, 60)}</a> `)}</p>
 ${user && html`<p>${same_user.length ? html`<a href=${to('events', { user })}>Other events of this user</a>` : 'Nothing was received of this user.'}</p>`}
 ${(refused.newest || []).slice(0, 3).map(row => html`<p class="note warn">A call was refused, ${date(row.at)}: ${cut(row.message, 400)}</p>`)}`
}
function Story({ id }) {
 const [event, setEvent] = useState()
 const [shown, setShown] = useState()
 const [error, attempt] = useTry()
 useEffect(() => {
  attempt(async () => {
   await get('/v1/events/' + encodeURIComponent(id)) // or why not
   setEvent((await get('/v1/trace', { id })).stories[0])
  })
 }, [])
 if (!event) return html`<h1>Event ${id}</h1><${Problem} error=${error} />`
 const { mapped, account, failures } = event, sent = mapped.requests.at(-1)?.body || {}
 const verify = async () => {
  setShown('PX is asked …')
  setShown(await attempt(async () => (await get('/v1/verify', { name: sent.eventName, user: sent.identifyId, date_ms: sent.date })).found ? 'PX shows this event.' : 'PX does not show this event. It can take minutes; some plans require that its name is registered.'))
 }
 const steps = [['Received', date(event.received_ms) + ' over ' + event.via + (event.user ? ', user ' + event.user : ', without a user') + (event.class ? ', class ' + event.class : '')],
  ['Account', account ? (account.id ?? '–') + ' from ' + (account.path || 'memory') + (account.call ? ' of the ' + account.call.type + ' call ' + date(account.call.received_ms) : ![0, event.id].includes(account.call_id) ? ' of a pruned call' : ' of the event itself') : 'none'],
  ['Mapped', (mapped.dropped || mapped.dead ? 'to nothing: ' : '') + [mapped.detail, mapped.name && 'its name in PX is ' + mapped.name, mapped.rule && 'by ' + mapped.rule].filter(Boolean).join(', ')]]
 if (failures) steps.push(['Failed', num(failures.count) + ' times, first ' + date(failures.first_ms) + ': ' + cut(failures.first, 500) + ' Last ' + date(failures.last_ms) + ': ' + cut(failures.last, 500)])
 if (event.waits_for) steps.push(['Waits for', event.waits_for])
 steps.push(['Now', event.state + (event.reason ? ': ' + event.reason : '') + (event.status ? ', PX answered ' + event.status : '') + (event.settled_ms ? ', ' + date(event.settled_ms) : '') + (event.detail ? ': ' + cut(event.detail, 1000) : '')])
 return html`<h1>Event ${event.id}: ${cut(event.name, 120)}</h1><section><table><tbody>${steps.map(([what, text]) => html`<tr><th scope="row">${what}</th><td>${text}</td></tr>`)}</tbody></table>
 <div class="row">${event.user && html`<a href=${to('events', { user: event.user })}>All events of this user</a>`}<a href=${to('mapping', { name: event.name })}>The mapping of this name</a>${event.state === 'dead' && html`<a href=${to('dead', { reason: event.reason, name: event.name })}>Its group of dead letters</a>`}
 ${event.state === 'delivered' && sent.eventName && html`<button onClick=${verify}>Ask PX for it</button>`}<span role="status">${shown}</span></div><${Problem} error=${error} /></section>
 <section class="three"><${Json} title="In" value=${event.event} />${mapped.requests.map(sent => html`<${Json} title=${'PX gets by the mapping in force: ' + sent.method + ' ' + sent.path} value=${sent.body} />`)}</section>
 ${mapped.changes.length > 0 && html`<section><h2>Changed on the way</h2>${mapped.changes.map(change => html`<p>${change.field}: ${change.what}</p>`)}</section>`}`
}
