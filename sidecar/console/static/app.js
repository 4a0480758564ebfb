// Session and navigation.
import { render } from '/vendor/preact.js'
import { html, useEffect, useState, about, get, signIn, here, to, zone } from '/base.js'
import { Live } from '/live.js'
import { Events } from '/events.js'
import { Dead } from '/dead.js'
import { Mapping } from '/mapping.js'
import { Products, Reconcile, Health } from '/more.js'

const screens = Object.fromEntries(Object.entries({ Live, Events, Dead, Mapping, Products, Reconcile, Health }).map(pair => [pair[0].toLowerCase(), pair]))
const shown = () => about.hide_bodies ? ['live', 'events', 'dead'] : Object.keys(screens)

function App() {
 const [at, move] = useState(here())
 const [error, fail] = useState()
 const [ready, setReady] = useState(false)
 useEffect(() => {
  const start = async () => {
   const code = /^#code=(.+)$/.exec(location.hash)
   if (code) history.replaceState(null, '', '/') // the code leaves the address bar, used or not
   try {
    if (code) await signIn(code[1])
    Object.assign(about, await get('/console'))
    fail(); setReady(true); move(here())
   } catch (e) { fail(e) }
  }
  const moved = () => location.hash.startsWith('#code=') ? start() : move(here())
  const out = event => { setReady(false); fail(event.detail) }
  addEventListener('hashchange', moved)
  addEventListener('signedout', out)
  start()
 }, [])
 const name = shown().includes(at.screen) ? at.screen : 'live', [title, Screen] = screens[name]
 useEffect(() => { document.title = title + ' · px-sidecar' }, [title])
 if (!ready) return html`<main><h1>px-sidecar</h1>${error ? html`<p class="note" role="alert">${error.message}</p>` : html`<p>Signing in …</p>`}</main>`
 return html`<a class="skip" href="#main" onClick=${event => { event.preventDefault(); document.getElementById('main').focus() }}>Skip to content</a>
 <header><b>px-sidecar</b><span class="soft">${about.host}</span>
 <nav aria-label="Screens">${shown().map(key => html`<a href=${to(key)} aria-current=${key === name ? 'page' : undefined}>${screens[key][0]}</a>`)}</nav>
 ${about.read_only && html`<span class="soft">read-only${about.hide_bodies ? ', bodies hidden' : ''}</span>`}</header>
 <main id="main" tabindex="-1"><${Screen} key=${name} params=${at.params} /></main>
 <footer>Times are in ${zone}. px-sidecar ${about.version}.</footer>`
}
render(html`<${App} />`, document.getElementById('app'))
