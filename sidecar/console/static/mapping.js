// Mapping.
import { html, Field, Select, filters, usePoll, useEffect, useState, useTry, about, get, post, num, go, Json, Pre, Problem, Confirm, cut, Table } from '/base.js'

const kinds = [['events', 'event name becomes'], ['rename', 'rename attribute to'], ['set', 'set attribute to'], ['drop', 'drop attribute'], ['hash', 'hash attribute']]

export function Saver({ file, toml, onSaved, disabled }) {
 const [diff, setDiff] = useState()
 const [error, attempt] = useTry()
 const [done, setDone] = useState()
 const show = () => { setDone(); attempt(async () => setDiff(await post('/file/diff', { toml }))) }
 const save = yes => {
  setDiff()
  if (yes) attempt(async () => { setDone(await post('/file/save', { toml, sha256: file.sha256 })); onSaved() })
 }
 const locked = file.managed || (about.read_only && 'This console is read-only.')
 return html`<div class="row"><button class="main" disabled=${disabled || toml === file.toml} onClick=${show}>Review and save …</button><button onClick=${() => attempt(onSaved)}>Load again</button></div><${Problem} error=${error} />
 ${done && html`<p role="status" class="good">Saved${done.reloaded ? ' and in force' : ''}. ${done.waiting.length ? 'After a restart: ' + done.waiting.join(', ') + '. ' : ''}${done.note} The old text is in ${file.path}.old.1.</p>`}
 ${diff && html`<${Confirm} title=${locked ? 'Managed elsewhere' : 'Save ' + file.path + '?'} action=${locked ? navigator.clipboard ? 'Copy' : 'Close' : 'Save and reload'} onClose=${yes => locked ? (yes && navigator.clipboard?.writeText(diff.snippet), setDiff()) : save(yes)}>
 ${locked && html`<p class="note">${locked}</p>`}${diff.overridden.map(text => html`<p class="note warn">${text}</p>`)}<${Pre} label="Difference" lines=${diff.lines} tone=${{ '+': 'good', '-': 'bad' }} />
 ${locked && html`<h3>To copy to where the file comes from:</h3><${Pre} label="Snippet" lines=${[diff.snippet]} />`}<//>`}`
}

export function useFile() {
 const [file, setFile] = useState()
 const [toml, setToml] = useState('')
 const [error, attempt] = useTry()
 const load = () => attempt(async () => { const value = await get('/file'); setFile(value); setToml(value.toml) })
 useEffect(() => { load() }, [])
 const edit = changes => attempt(async () => { setToml((await post('/file/edit', { toml, changes })).toml); return true })
 return { file, toml, setToml, load, edit, error }
}

export function Mapping({ params }) {
 const { file, toml, setToml, load, edit, error } = useFile()
 const [view, setView] = useState({ rows: [], names: [], unmatched: [] })
 const [wrong, setWrong] = useState()
 const [rules, setRules] = useState([])
 const [rule, setRule] = useState({})
 const { value: seen } = usePoll('/v1/names', 60)
 useEffect(() => {
  if (!file) return
  let over
  const look = async () => {
   try {
    const answer = await post('/v1/mapping/preview', { toml, name: params.name || null, unmatched: true })
    if (over) return
    if (!answer.ok) return setWrong(answer.error)
    setView(answer); setWrong(); setRules((await post('/file/edit', { toml })).rules)
   } catch (e) { if (!over) { setWrong(e.message); timer = setTimeout(look, 5000) } }
  }
  let timer = setTimeout(look, 250)
  return () => { over = true; clearTimeout(timer) }
 }, [file, toml, params.name])
 const old = wrong && 'grey'
 if (!file) return html`<h1>Mapping</h1><${Problem} error=${error} />`
 const days = seen ? Object.fromEntries(seen.names.map(row => [row.type + row.name, row.share])) : {}
 const add = event => {
  const { kind, name, value } = filters(event), list = kind === 'drop' || kind === 'hash'
  const path = ['mapping', ...kind === 'events' ? [] : ['attributes'], kind, list ? '-' : name]
  edit([...rule.path && rule.path + '' !== path + '' ? [{ path: rule.path }] : [], { path, value: list ? name : value }])
  setRule({})
 }
 return html`<h1>Mapping</h1>${file.managed && html`<p class="note">Managed elsewhere: ${file.managed}</p>`}<${Problem} error=${error} />
 <div class="two"><section><h2>Rules</h2><form onSubmit=${add}><${Select} label="Rule" name="kind" value=${rule.kind} options=${kinds} /><${Field} label="Name" name="name" value=${rule.name || params.name} required /><${Field} label="Value" name="value" value=${rule.value} /><button>${rule.path ? 'Change' : 'Add'}</button></form>
 ${rules.length > 0 && html`<${Table} label="Rules in the text" heads=${['Rule', 'Name', 'Value', 'Edit']}>${rules.map(row => html`<tr><td>${(kinds.find(([kind]) => kind === row.kind) || [])[1] || row.kind}</td><td>${cut(row.name)}</td><td>${cut(row.value)}</td><td class="t">${kinds.some(([kind]) => kind === row.kind) && html`<button onClick=${() => setRule(row)}>Change</button>`} <button aria-label=${'Remove ' + row.kind + ' ' + row.name} onClick=${() => edit([{ path: row.path }])}>Remove</button></td></tr>`)}<//>`}
 <label>${file.path}<textarea spellcheck="false" value=${toml} onInput=${event => setToml(event.target.value)} aria-invalid=${!!wrong}></textarea></label>${Object.keys(file.variables).length > 0 && html`<p class="soft">Set by variables of the daemon, whatever this file says: ${Object.entries(file.variables).map(pair => pair.join(' by ')).join(', ')}.</p>`}
 ${wrong && html`<p class="note bad" role="alert">${wrong}</p>`}${view.unmatched.map(rule => html`<p class="warn">Matches no recent event: ${rule}</p>`)}
 <${Saver} file=${file} toml=${toml} disabled=${!!wrong} onSaved=${load} /></section>
 <section class=${old}><h2>Event names</h2><${Table} label="Names seen" heads=${['Name', '#Events', '&Day', 'In PX now', 'After the change']}>${view.names.map(row => html`<tr class=${row.name === params.name ? 'on' : ''}><td><button class="link" onClick=${() => go('mapping', { name: row.name === params.name ? '' : row.name })}>${cut(row.name) || row.type}</button></td><td class="n">${num(row.events)}</td><td class="n wide">${num(100 * days[row.type + row.name] || 0)} %</td><td>${cut(row.now ?? 'no event')}</td><td class=${row.now === row.then ? '' : 'diff'}>${cut(row.then ?? 'no event')}</td></tr>`)}<//>${seen && seen.findings.map(text => html`<p class="warn">${text}</p>`)}</section></div>
 <section><h2>${params.name ? 'The newest events named ' + cut(params.name) : 'The newest events'}: what PX gets, now and after the change</h2><p class="soft" role="status">${wrong ? 'This is the last preview that could be made.' : num(view.rows.filter(row => !row.same).length) + ' of ' + num(view.rows.length) + ' real events would change.'}</p>
 <div class=${old}>${[...view.rows].sort((a, b) => a.same - b.same).slice(0, 50).map(row => html`<details><summary class=${row.same ? '' : 'diff'}>${row.id} ${cut(row.name)}: ${row.same ? 'the same' : 'changes'}${row.reveals ? ', and sends what is hidden now' : ''}</summary><div class="three"><${Json} title="In" value=${row.event} /><${Json} title="PX gets now" value=${result(row.now)} beside=${result(row.then)} /><${Json} title="After the change" value=${result(row.then)} beside=${result(row.now)} /></div></details>`)}</div></section>`
}
const result = given => given.requests ? given.requests.map(sent => sent.body) : given
