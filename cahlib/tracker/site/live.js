// Keeps the overview up to date: by server-sent events, or where none come by asking for the page.
"use strict";

const pulse = document.getElementById("pulse");
const main = () => document.querySelector("main");
const say = (text) => { if (pulse.textContent !== text) pulse.textContent = text; };
let source = null;
let asking = 0;

function follow() {
  source = new EventSource(new URL(main().dataset.live, location.href));
  source.onopen = () => { stopAsking(); say("Live."); };
  source.onmessage = (event) => show(JSON.parse(event.data));
  source.onerror = () => {
    if (source.readyState === EventSource.CLOSED) stop();  // refused, so not tried again by itself
    else say("The tracker does not answer; trying again.");
    if (!asking) asking = setInterval(renew, 15000);
  };
}

function stop() {
  if (source) source.close();
  source = null;
}

function stopAsking() {
  clearInterval(asking);
  asking = 0;
}

// Exchanges what lies in <main> for what the server would show now, without a reload.
async function renew() {
  try {
    const answer = await fetch(location.href);
    if (!answer.ok) throw new Error(answer.status);
    const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
    main().replaceWith(fresh.querySelector("main"));
    document.title = fresh.title;
    settle();
    say("Updated " + new Date().toLocaleTimeString() + ".");
    if (!source) follow();
  } catch {
    say("The tracker does not answer; trying again.");
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

// What was so many seconds ago when it came is as much longer ago now.
function date(time) {
  if (!time.dataset.at) time.dataset.at = Date.now() / 1000 - time.dataset.ago;
  const seconds = Math.max(0, Date.now() / 1000 - time.dataset.at);
  const minutes = Math.floor(seconds / 60);
  const text = seconds < 90 ? Math.round(seconds) + " s"
    : minutes < 60 ? minutes + " min" : Math.floor(minutes / 60) + " h " + (minutes % 60) + " min";
  time.textContent = text + " ago";
}

// Where this is, only the browser knows: a proxy may hold it below a path.
function settle() {
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

settle();
if (main().dataset.live) {
  follow();
  setInterval(() => document.querySelectorAll("time[data-ago]").forEach(date), 5000);
  // a browser opens six connections to a host in all: pages that nobody sees take none
  document.addEventListener("visibilitychange", () => {
    stop();
    stopAsking();
    if (!document.hidden) follow();
  });
}
