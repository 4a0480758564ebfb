// Dead letters.
import { html, useEffect, useRef, useState, useTry, about, get, post, lines, usePoll, num, date, to, Problem, Confirm, download, cut, Table } from '/base.js'

export function Dead({ params }) {
 const [again, setAgain] = useState(0)
 const { value, error } = usePoll('/v1/dead/groups', 5, [again])
 const groups = value ? value.groups : []
 return html`<h1>Dead letters</h1><${Problem} error=${error} />
 <p class="soft" role="status">${!value ? 'Counting …' : value.dead ? num(value.dead) + ' events were refused for good. They are kept, and can be replayed after a mapping was mended.' + (value.complete ? '' : ' Not all could be counted in time.') : 'No event is dead.'}</p>
 ${groups.length > 0 && html`<${Table} label="Groups" heads=${['Reason', 'Name', '#Events', '~Last', '~What PX said']}>${groups.map(group => { const on = params.reason === group.reason && (params.name || '') === group.name
   return html`<tr class=${on ? 'on' : ''}><td>${group.reason}${group.status ? ' (' + group.status + ')' : ''}</td><td><a href=${to('dead', on ? {} : { reason: group.reason, name: group.name })} aria-current=${on || undefined}>${cut(group.name, 100) || '(no name)'}</a></td><td class="n">${num(group.count)}</td><td class="t wide">${date(group.last_ms)}</td><td class="wide">${cut(group.detail, 300)}</td></tr>` })}<//>`}
 ${params.reason && html`<${Group} key=${params.reason + '/' + params.name} which=${{ reason: params.reason, name: params.name || '' }} done=${() => setAgain(again + 1)} />`}`
}
function Group({ which, done }) {
 const [ask, setAsk] = useState()
 const [run, setRun] = useState()
 const [error, attempt] = useTry()
 const [letters, setLetters] = useState([])
 const stop = useRef(false)
 const named = { ...which, name: which.name || [''] } // '' would be left out
 const load = () => about.hide_bodies || attempt(async () => setLetters((await get('/v1/dead', { ...named, limit: 20 })).letters))
 useEffect(() => { load() }, [])
 const begin = verb => attempt(async () => setAsk({ verb, ...await post('/v1/dead/count', which) }))
 const go = async () => {
  const { verb, count } = ask
  setAsk(); stop.current = false
  const ended = await attempt(async () => {
   let moved = 0
   for (let after = 0; after != null && !stop.current;) {
    const page = await post('/v1/dead/' + verb, { ...which, after })
    after = page.next; moved += page.moved
    setRun({ verb, moved, count, busy: after != null })
   }
   setRun({ verb, moved, count, busy: false, cancelled: stop.current && moved < count })
   return true
  })
  ended ? load() : setRun()
  done()
 }
 const save = () => attempt(async () => {
  const parts = []
  for await (const letter of lines('/v1/dead/export', named)) parts.push(JSON.stringify(letter) + '\n')
  download('dead.ndjson', parts, 'application/x-ndjson')
 })
 const words = { retry: 'Replay', discard: 'Discard' }
 return html`<section><h2>${which.reason}: ${cut(which.name, 100)}</h2><${Problem} error=${error} />
 <div class="row">${!about.read_only && html`<button class="main" disabled=${run && run.busy} onClick=${() => begin('retry')}>Replay …</button><button class="bad" disabled=${run && run.busy} onClick=${() => begin('discard')}>Discard …</button>`}
 ${!about.hide_bodies && html`<button onClick=${save}>Export</button><a href=${to('mapping', { name: which.name })}>Its mapping</a>`}${run && run.busy && html`<button onClick=${() => { stop.current = true }}>Cancel</button>`}</div>
 ${run && html`<p role="status">${run.verb === 'retry' ? 'Replayed' : 'Discarded'} ${num(run.moved)} of ${num(run.count)}${run.cancelled ? ', cancelled' : ''}. <progress max=${run.count} value=${run.moved} aria-label="Progress"></progress></p>`}
 ${letters.map(letter => html`<p><a href=${to('events', { id: letter.id })}>${letter.id}</a> ${date(letter.last_ms)} ${cut(letter.user, 60)}: ${cut(letter.detail, 300)}</p>`)}
 ${ask && html`<${Confirm} title=${words[ask.verb] + ' ' + num(ask.count) + (ask.complete ? '' : ' or more') + ' events?'} action=${words[ask.verb]} danger=${ask.verb === 'discard'} onClose=${yes => yes ? go() : setAsk()}>
 <p>${ask.verb === 'retry' ? 'They become pending again and are mapped by the mapping in force.' : 'They become dropped with the reason discarded. This cannot be undone.'}</p><//>`}</section>`
}
