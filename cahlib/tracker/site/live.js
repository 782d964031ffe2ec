// Keeps the overview up to date by server-sent events, or by polling the page if there are none.
"use strict";

const pulse = document.getElementById("pulse");
const main = () => document.querySelector("main");
const setStatus = (text) => { if (pulse.textContent !== text) pulse.textContent = text; };
let source = null;
let polling = 0;

function follow() {
  source = new EventSource(new URL(main().dataset.live, location.href));
  source.onopen = () => { stopPolling(); setStatus("Live."); };
  source.onmessage = (event) => show(JSON.parse(event.data));
  source.onerror = () => {
    if (source.readyState === EventSource.CLOSED) stop();  // rejected, so the browser does not reconnect
    else setStatus("The tracker does not answer; retrying.");
    if (!polling) polling = setInterval(reload, 15000);
  };
}

function stop() {
  if (source) source.close();
  source = null;
}

function stopPolling() {
  clearInterval(polling);
  polling = 0;
}

// Replaces <main> by what the server shows now, without reloading the page.
async function reload() {
  try {
    const answer = await fetch(location.href);
    if (!answer.ok) throw new Error(answer.status);
    const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
    main().replaceWith(fresh.querySelector("main"));
    document.title = fresh.title;
    prepare();
    setStatus("Updated " + new Date().toLocaleTimeString() + ".");
    if (!source) follow();
  } catch {
    setStatus("The tracker does not answer; retrying.");
  }
}

function show({ values, finished }) {
  for (const [name, text] of Object.entries(values.texts)) {
    document.querySelectorAll(`[data-value="${name}"]`).forEach((place) => {
      if (place.textContent !== text) place.textContent = text;
    });
  }
  for (const [name, width] of Object.entries(values.bars)) {
    document.querySelector(`[data-width="${name}"]`).setAttribute("width", width);
  }
  document.title = document.title.replace(/^[\d.]+/, values.texts.share);
  const feed = document.querySelector("[data-feed]");
  for (const one of finished.reverse()) enter(feed, one);
  while (feed.children.length > 12) feed.lastElementChild.remove();
}

function enter(feed, one) {
  if ([...feed.children].some((each) => each.dataset.key === one.key)) return;
  feed.querySelector("[data-empty]")?.remove();
  const line = document.querySelector("template").content.cloneNode(true).firstElementChild;
  line.dataset.key = one.key;
  line.classList.add("fresh");
  const who = line.querySelector("a");
  who.href = "person?name=" + encodeURIComponent(one.who);
  who.firstElementChild.textContent = one.who;
  line.querySelector("b").textContent = one.pairs + " pairs";
  line.querySelector(".pace").textContent = one.pace;
  const time = line.querySelector("time");
  time.dataset.ago = one.ago;
  date(time);
  feed.prepend(line);
}

// Updates how long ago something was, from its age on arrival.
function date(time) {
  if (!time.dataset.at) time.dataset.at = Date.now() / 1000 - time.dataset.ago;
  const seconds = Math.max(0, Date.now() / 1000 - time.dataset.at);
  const minutes = Math.floor(seconds / 60);
  const text = seconds < 90 ? Math.round(seconds) + " s"
    : minutes < 60 ? minutes + " min" : Math.floor(minutes / 60) + " h " + (minutes % 60) + " min";
  time.textContent = text + " ago";
}

// Only the browser knows the full URL: a proxy may serve the site below a path.
function prepare() {
  document.querySelectorAll("[data-here]").forEach((place) => {
    place.textContent = new URL(place.dataset.here, location.href).href.replace(/\/$/, "");
  });
  document.querySelectorAll("[data-copy]").forEach((button) => {
    button.hidden = !navigator.clipboard;
    button.onclick = async () => {
      await navigator.clipboard.writeText(document.getElementById(button.dataset.copy).textContent);
      button.textContent = "Copied";
    };
  });
  document.querySelectorAll("time[data-ago]").forEach(date);
}

prepare();
if (main().dataset.live) {
  follow();
  setInterval(() => document.querySelectorAll("time[data-ago]").forEach(date), 5000);
  // a browser opens six connections per host: hidden pages give theirs up
  document.addEventListener("visibilitychange", () => {
    stop();
    stopPolling();
    if (!document.hidden) follow();
  });
}
