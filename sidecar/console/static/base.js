// What all screens share.
import { html, useEffect, useRef, useState } from '/vendor/preact.js'
export { html, useEffect, useRef, useState }

const key = 'px-sidecar-token'
let token = sessionStorage.getItem(key)
export const about = {} // filled by app.js

export async function signIn(code) {
 token = (await (await open('POST', '/session', { code })).json()).token
 sessionStorage.setItem(key, token)
}

const lost = e => { throw e.name === 'AbortError' ? e : new Error('The connection is lost; try again, or restart the console.') }
async function open(method, path, body, signal) {
 const answer = await fetch(path, { method, signal, headers: { Authorization: 'Bearer ' + token, 'Content-Type': 'application/json' }, body: body && JSON.stringify(body) }).catch(lost)
 if (!answer.ok) {
  const e = new Error((await answer.json()).error)
  if (answer.status === 401) dispatchEvent(new CustomEvent('signedout', { detail: e }))
  throw e
 }
 return answer
}
export const get = async (path, params) => (await open('GET', '/api' + path + query(params))).json()
export const post = async (path, body = {}) => (await open('POST', '/api' + path, body)).json()
export async function* lines(path, params, signal) {
 const reader = (await open('GET', '/api' + path + query(params), undefined, signal)).body.getReader()
 const decoder = new TextDecoder()
 for (let rest = ''; ;) {
  const { done, value } = await reader.read().catch(lost)
  if (done) return
  rest += decoder.decode(value, { stream: true })
  const whole = rest.split('\n')
  rest = whole.pop()
  for (const line of whole) if (line) yield JSON.parse(line)
 }
}
const query = params => {
 const given = Object.entries(params || {}).filter(([, value]) => value !== '' && value != null)
 return given.length ? '?' + new URLSearchParams(given) : ''
}

// Filters live in the address.
export const here = () => {
 const [path, text] = location.hash.replace(/^#\/?/, '').split('?')
 return { screen: path || 'live', params: Object.fromEntries(new URLSearchParams(text || '')) }
}
export const to = (screen, params) => '#/' + screen + query(params)
export const go = (screen, params) => { location.hash = to(screen, params) }

const count = new Intl.NumberFormat()
export const num = value => value == null ? '–' : count.format(Math.round(value * 10) / 10)
const format = parts => new Intl.DateTimeFormat(undefined, { hourCycle: 'h23', ...parts })
const clock = format({ timeStyle: 'medium' }), full = format({ dateStyle: 'medium', timeStyle: 'medium' })
export const minute = format({ timeStyle: 'short' })
export const zone = Intl.DateTimeFormat().resolvedOptions().timeZone
export const time = at => at == null ? '–' : clock.format(new Date(at))
export const date = at => at == null ? '–' : (new Date(at).toDateString() === new Date().toDateString() ? clock : full).format(new Date(at))
export const span = s => {
 if (s == null) return '–'
 if (s < 1) return s > 0 ? 'under 1 s' : '0 s'
 if (s < 120) return Math.round(s) + ' s'
 if (s < 7200) return Math.round(s / 60) + ' min'
 return s < 172800 ? Math.round(s / 3600) + ' h' : num(s / 86400) + ' days'
}
export const size = bytes => bytes == null ? '–' : bytes < 2 ** 30 ? num(bytes / 2 ** 20) + ' MiB' : num(bytes / 2 ** 30) + ' GiB'
const json = value => {
 const text = JSON.stringify(value, null, 2)
 return text === undefined ? '–' : text.length > 20000 ? text.slice(0, 20000) + '\n… ' + num(text.length - 20000) + ' more characters' : text
}
export const Pre = ({ label, lines, tag = () => 'span', tone = {} }) => html`<pre tabindex="0" aria-label=${label}>${lines.map(line => html`<${tag(line)} class=${tone[line[0]]}>${line + '\n'}<//>`)}</pre>`
const bare = line => line.replace(/,$/, '')
// Marks lines that are not in beside.
export const Json = ({ value, title, beside = value }) => {
 const other = new Set(json(beside).split('\n').map(bare))
 return html`<div><h3>${title}</h3><${Pre} label=${title} lines=${json(value).split('\n')} tag=${line => other.has(bare(line)) ? 'span' : 'mark'} /></div>`
}
export const cut = (text, length = 80) => (text = String(text ?? '')).length > length ? text.slice(0, length) + '…' : text
const colors = { delivered: 'good', retry: 'warn', dropped: 'soft', dead: 'bad' }
export const State = ({ what, reason }) => html`<span class=${colors[what] || ''}>${what}${reason ? ': ' + reason : ''}</span>`
// What `status` leads with, in its order.
const tones = { accepting: 'bad', delivery: 'bad', loss: 'warn' }, kind = { limit: 'Near a limit: ', note: 'Note: ' }
export const Problems = ({ status, most = 99 }) => html`${status.problems.slice(0, most).map(row => html`<p class=${'note ' + (tones[row.severity] || '')}>${kind[row.severity]}${cut(row.message, 600)}</p>`)}${status.problems.length > most && html`<p><a href=${to('health')}>${status.problems.length - most} more on Health</a></p>`}`
export const state = ({ state, delivering, pending, rate }) => state !== 'open' ? state : !delivering ? 'held up' : pending || rate ? 'delivering' : 'idle'
export const Problem = ({ error }) => error ? html`<p class="note bad" role="alert">${error.message || error}</p>` : null

// #: a number, ~: not on narrow screens, &: both.
export const Table = ({ label, heads, children }) => html`<section class="scroll" tabindex="0" aria-label=${label}><table><thead><tr>${heads.map(text => html`<th scope="col" class=${{ '#': 'n', '~': 'wide', '&': 'n wide' }[text[0]]}>${text.replace(/^[#~&]/, '')}</th>`)}</tr></thead><tbody>${children}</tbody></table></section>`

export const filters = event => {
 event.preventDefault()
 return Object.fromEntries([...new FormData(event.target)].map(([name, value]) => [name, value.trim()]))
}
export const Field = ({ label, name, value, ...rest }) => html`<label>${label}<input key=${value} name=${name} defaultValue=${value || ''} autocomplete="off" ...${rest} /></label>`
export const Select = ({ label, name, value, options }) => html`<label>${label}<select key=${value} name=${name}>${options.map(([key, text = key]) => html`<option value=${key} selected=${key === (value || '')}>${text}</option>`)}</select></label>`

// The last error, and a way to try.
export function useTry() {
 const [error, fail] = useState()
 return [error, async work => { fail(); try { return await work() } catch (e) { fail(e) } }]
}
// Polls while the tab is seen.
export function usePoll(path, seconds, inputs = []) {
 const [state, set] = useState({})
 useEffect(() => {
  let over = false, timer
  const tick = async () => {
   clearTimeout(timer)
   if (document.hidden) return
   try { const value = await get(path); over || set({ value }) } catch (error) { over || set(old => ({ value: old.value, error })) }
   if (!over && seconds) timer = setTimeout(tick, seconds * 1000)
  }
  tick()
  document.addEventListener('visibilitychange', tick)
  return () => { over = true; clearTimeout(timer); document.removeEventListener('visibilitychange', tick) }
 }, inputs)
 return state
}

export function Confirm({ title, children, action, danger, onClose }) {
 const dialog = useRef()
 useEffect(() => { dialog.current.showModal() }, [])
 return html`<dialog ref=${dialog} onClose=${() => onClose(false)} aria-labelledby="ask"><h2 id="ask">${title}</h2>${children}
 <div class="row"><button class=${danger ? 'bad' : 'main'} onClick=${() => onClose(true)}>${action}</button><button onClick=${() => onClose(false)}>Cancel</button></div></dialog>`
}
export function download(name, parts, type = 'application/json') {
 const link = document.createElement('a')
 link.href = URL.createObjectURL(new Blob(parts, { type }))
 link.download = name
 link.click()
 setTimeout(() => URL.revokeObjectURL(link.href), 10000)
}
