"use strict";
// The page on a dataset. What comes from the dataset is set as text, never as HTML, and a link is
// made of http and https alone. What is shown is in the address, after #, so that Back works.

const PAGE = 48;
const by = id => document.getElementById(id);
const grouped = new Intl.NumberFormat("en").format;
// in a frame there is no cookie, so that each request shows the token
const token = window.top === window ? "" : new URLSearchParams(location.search).get("token") || "";
let about = {}, shown = [], total = 0, asked = 0, opened = null, opener = null, edges = [], waiting = 0;

if (!token && location.search) history.replaceState(null, "", location.pathname + location.hash);

const state = () => Object.fromEntries(new URLSearchParams(location.hash.slice(1)));

function view() {
  const {where = "", sort = "", order = "desc", words = "", like = ""} = state();
  return {where, sort, order, words, like};
}

function go(changes) {
  const next = new URLSearchParams({...state(), ...changes});
  for (const [name, value] of [...next]) if (value === "") next.delete(name);
  if ("#" + next === (location.hash || "#")) refresh(); else location.hash = "#" + next;
}

async function ask(path, query, options = {}) {
  let answer;
  try {
    const headers = token ? {"X-Cah-Token": token} : {};
    answer = await fetch(path + (query ? "?" + new URLSearchParams(query) : ""), {...options, headers});
  } catch {
    throw new Error("The page's server does not answer; is `cah browse` still running?");
  }
  const json = (answer.headers.get("Content-Type") || "").startsWith("application/json");
  const found = json ? await answer.json() : {error: await answer.text()};
  if (!answer.ok) throw new Error(found.error || `The server answered ${answer.status}.`);
  return found;
}

async function attempt(work) {
  try {
    await work();
    by("error").hidden = true;
  } catch (error) {
    by("error").textContent = error.message;
    by("error").hidden = false;
    by("status").textContent = "";
  }
}

function make(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

const digits = value => typeof value === "number" && !Number.isInteger(value) ? String(Number(value.toFixed(4))) : String(value);

function link(text, address) {
  const inner = make("bdi", {textContent: text});
  let found = null;
  try { found = new URL(address); } catch { /* shown as text */ }
  if (!found || !["http:", "https:"].includes(found.protocol)) return inner;
  return make("a", {href: found.href, rel: "noopener noreferrer nofollow", target: "_blank"}, inner);
}

function host(address) {
  try { return new URL(address).hostname || address; } catch { return address; }
}

function picture(item, lazy = true) {
  if (item.fault || !about.pictures) return make("span", {textContent: item.fault || "no picture stored"});
  const source = `image/${item.row}?` + new URLSearchParams({g: about.generation, ...(token ? {token} : {})});
  const image = make("img", {alt: item.pair.TEXT || "", decoding: "async", loading: lazy ? "lazy" : "eager"});
  image.addEventListener("error", async () => {
    const why = make("span", {textContent: "This picture cannot be read; see `cah verify`."});
    image.replaceWith(why);
    await ask(source).catch(error => { why.textContent = error.message; });
  }, {once: true});
  image.src = source;
  return image;
}

const isHidden = item => item.pair && item.pair.NSFW !== "UNLIKELY" && !by("unblur").checked && !item.seen;

function card(item) {
  const pair = item.pair, box = make("li");
  const shot = make("button", {type: "button", className: "shot"}, picture(item));
  const name = (pair?.TEXT || item.fault || "Pair").slice(0, 120);
  item.veil = () => {
    const veiled = Boolean(isHidden(item));
    shot.classList.toggle("veiled", veiled);
    shot.querySelector(".veil")?.remove();
    if (veiled) shot.append(make("span", {className: "veil", textContent: `${pair.NSFW || "not judged"}: show`}));
    shot.setAttribute("aria-label", veiled ? `Show the blurred picture: ${name}` : `Open: ${name}`);
  };
  shot.addEventListener("click", () => {
    if (isHidden(item)) { item.seen = true; item.veil(); } else if (pair) openPair(item, shot);
  });
  item.veil();
  box.append(shot);
  if (!pair) return box;
  const facts = make("div", {className: "facts"});
  if (item.found !== undefined) facts.append(make("span", {}, "match ", make("b", {textContent: item.found.toFixed(3)})));
  for (const [label, name] of about.scores.filter(each => typeof pair[each[1]] === "number").slice(0, 4)) {
    facts.append(make("span", {title: name}, `${label} `, make("b", {textContent: pair[name].toFixed(3)})));
  }
  const page = pair.page || pair.URL || "";
  facts.append(link(host(page), page));
  if (pair.LICENSE && pair.LICENSE !== "?") facts.append(link("licence", pair.LICENSE));
  if (pair.language) facts.append(make("span", {textContent: pair.language}));
  facts.append(make("span", {textContent: `${pair.WIDTH} × ${pair.HEIGHT}`}));
  box.append(make("div", {className: "about"}, make("q", {dir: "auto", textContent: pair.TEXT || "", title: pair.TEXT || ""}), facts));
  const mark = make("button", {type: "button", textContent: "Mark"});
  const alike = make("button", {type: "button", textContent: "Look-alikes", disabled: !about.alike});
  item.showMark = () => {
    box.classList.toggle("marked", item.marked);
    mark.setAttribute("aria-pressed", item.marked);
  };
  mark.addEventListener("click", () => attempt(() => setMarks([item], !item.marked)));
  alike.addEventListener("click", () => lookAlike(item));
  box.addEventListener("keydown", event => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "m") mark.click();
    if (event.key === "l") alike.click();
  });
  item.showMark();
  box.append(make("div", {className: "acts"}, mark, alike));
  return box;
}

const lookAlike = item => go({like: String(item.row), words: "", sort: "", start: ""});

function openPair(item, from) {
  [opened, opener] = [item, from];
  by("title").textContent = (item.pair.TEXT || "Pair").slice(0, 200);
  by("large").replaceChildren(picture(item, false));
  by("like-pair").disabled = !about.alike;
  by("mark-pair").setAttribute("aria-pressed", item.marked);
  by("columns").replaceChildren();
  by("pair").showModal();
  attempt(async () => {
    const pair = await ask("api/pair", {row: item.row});
    if (opened !== item) return;
    by("columns").replaceChildren(...Object.entries(pair).map(([name, value]) => {
      const text = value === null ? "–" : digits(value);
      const isLink = typeof value === "string" && /^https?:/i.test(value);
      return make("tr", {}, make("th", {scope: "row", textContent: name}), make("td", {dir: "auto"}, isLink ? link(value, value) : text));
    }));
  });
}

async function setMarks(items, marked) {
  const uids = items.filter(item => item.pair).map(item => item.pair.uid);
  const found = await ask("api/marks", null, {method: "POST", body: JSON.stringify({uids, marked})});
  for (const item of [...items, ...shown]) {
    if (uids.includes(item.pair?.uid)) { item.marked = marked; item.showMark?.(); }
  }
  showMarks(found);
}

const quoted = text => /^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`;

function showMarks(found) {
  by("marked").textContent = grouped(found.marks);
  by("file").textContent = found.file;
  by("purge").textContent = `cah purge ${quoted(about.place)} --uids ${quoted(found.file)}`;
  by("select-marked").textContent = `cah select ${quoted(about.place)} --marks ${quoted(found.file)} --into selected`;
  if (found.fault) throw new Error(found.fault);
}

async function refresh() {
  const now = ++asked, sought = view(), start = Number(state().start) || 0;
  by("where").value = sought.where;
  by("words").value = sought.words;
  by("sort").options[0].textContent = sought.words || sought.like ? "the nearest first" : "dataset order";
  by("sort").value = sought.sort;
  by("ascending").checked = sought.order === "asc";
  by("back").hidden = !(sought.where || sought.words || sought.like || sought.sort);
  by("select").textContent = `cah select ${quoted(about.place)} --where ${quoted(sought.where || "similarity > 0.3")} --into selected`;
  by("status").textContent = sought.words ? "Searching …" : "Loading …";
  await attempt(async () => {
    const found = await ask("api/pairs", {...sought, start, count: PAGE});
    if (now !== asked) return;
    [shown, total] = [found.items, found.total];
    by("pairs").replaceChildren(...shown.map(card));
    const how = sought.words ? `nearest to “${sought.words}”` : sought.like ? "most alike, the nearest first"
      : sought.where ? `of ${grouped(about.pairs)} match the filter` : "";
    by("status").textContent = `${grouped(total)} ${total === 1 ? "pair" : "pairs"} ${how}`;
    by("at").textContent = `Page ${grouped(Math.floor(start / PAGE) + 1)} of ${grouped(Math.max(1, Math.ceil(total / PAGE)))}`;
    by("previous").disabled = start <= 0;
    by("next").disabled = start + PAGE >= total;
  });
  if (by("distribution").open) distribution();
}

async function distribution() {
  const column = by("column").value, now = asked;
  if (!column) return;
  await attempt(async () => {
    const found = await ask("api/histogram", {...view(), column});
    if (now !== asked || by("column").value !== column) return;
    edges = found.edges;
    const most = Math.max(1, ...found.counts), last = Math.max(0, edges.length - 1);
    by("bars").replaceChildren(...found.counts.map(number => {
      const bar = make("i");
      bar.style.height = `${number ? Math.max(1, 100 * number / most) : 0}%`;
      return bar;
    }));
    const range = by("cut");
    Object.assign(range, {min: 0, max: last, step: 1, value: Math.floor(last / 4), disabled: !last});
    range.oninput = () => move(found.counts);
    const none = found.none ? `, ${grouped(found.none)} without a value` : "";
    by("spread").textContent = (last ? `${digits(edges[0])} to ${digits(edges[last])}` : "no values") + none;
    by("keep").disabled = !last;
    if (last) move(found.counts);
  });
}

function move(counts) {
  const bin = Number(by("cut").value), at = edges[bin], now = asked, column = by("column").value;
  const sum = some => some.reduce((left, right) => left + right, 0);
  const say = (stay, fall) => {
    by("split").textContent = `At ${digits(at)}: ${grouped(stay)} stay, ${grouped(fall)} fall.`;
    by("cut").setAttribute("aria-valuetext", by("split").textContent);
  };
  [...by("bars").children].forEach((bar, number) => bar.classList.toggle("stays", number >= bin));
  say(sum(counts.slice(bin)), sum(counts.slice(0, bin)));
  clearTimeout(waiting);
  waiting = setTimeout(() => attempt(async () => {
    const found = await ask("api/cut", {...view(), column, at});
    if (now !== asked || by("column").value !== column || Number(by("cut").value) !== bin) return;
    say(found.above, found.below);
    by("above").replaceChildren(...found.items_above.map(card));
    by("below").replaceChildren(...found.items_below.map(card));
  }), 120);
}

async function dropped(start = 0) {
  const reason = by("reason").value;
  if (!reason) return;
  await attempt(async () => {
    const found = await ask("api/dropped", {reason, start, count: PAGE});
    if (by("reason").value !== reason) return;
    by("candidates").replaceChildren(...found.items.map(({text, url, page, similarity, status}) => make("tr", {},
      make("td", {dir: "auto", textContent: text ?? "erased"}),
      make("td", {}, url ? link(host(url), url) : "–"),
      make("td", {}, page ? link(host(page), page) : "–"),
      make("td", {textContent: similarity?.toFixed(3) ?? "–"}),
      make("td", {textContent: status ?? "–"}))));
    const end = start + found.items.length;
    by("dropped-at").textContent = `${grouped(start + 1)} to ${grouped(end)} of ${grouped(found.total)}`;
    by("fewer").disabled = start <= 0;
    by("more").disabled = end >= found.total;
    by("fewer").onclick = () => dropped(Math.max(0, start - PAGE));
    by("more").onclick = () => dropped(start + PAGE);
  });
}

async function begin() {
  about = await ask("api/about");
  by("about").textContent = `${grouped(about.pairs)} pairs in ${grouped(about.shards)} ${about.shards === 1 ? "shard" : "shards"}`;
  const option = name => make("option", {value: `"${name.replaceAll('"', '""')}"`, textContent: name});
  by("sort").replaceChildren(make("option", {value: "", textContent: "dataset order"}), ...about.columns.map(option));
  const column = by("column").value || "similarity";
  by("column").replaceChildren(...about.numbers.map(name => make("option", {value: name, textContent: name})));
  by("column").value = about.numbers.includes(column) ? column : about.numbers[0] || "";
  const examples = ["similarity > 0.3", "language = 'en'", "NSFW <> 'UNLIKELY'", "TEXT ILIKE '%cat%'", "WIDTH >= 512 AND HEIGHT >= 512"];
  by("examples").replaceChildren(...examples.map(value => make("option", {value})));
  by("dropped").hidden = !about.dropped.length;
  by("reason").replaceChildren(...about.dropped.map(([value, phrase, number]) => make("option", {value, textContent: `${phrase} (${grouped(number)})`})));
  const notices = [...about.notices, ...(about.words ? [about.words] : [])];
  by("notices").replaceChildren(...notices.map(textContent => make("p", {className: "notice", textContent})));
  for (const each of [by("words"), by("picture"), by("search").querySelector("button")]) each.disabled = Boolean(about.words);
  if (token) for (const each of document.querySelectorAll("a[download]")) each.search = new URLSearchParams({token});
  showMarks(about);
}

function turn(pages) {
  go({start: String(Math.max(0, (Number(state().start) || 0) + pages * PAGE))});
  by("pairs").focus({preventScroll: true});
  scrollTo(0, 0);
}

by("search").addEventListener("submit", event => {
  event.preventDefault();
  go({words: by("words").value.trim(), like: "", sort: "", start: ""});
});
by("picture").addEventListener("change", event => attempt(async () => {
  const [file] = event.target.files;
  if (!file) return;
  by("status").textContent = "Searching …";
  const {like} = await ask("api/picture", null, {method: "POST", body: file});
  event.target.value = "";
  go({like, words: "", sort: "", start: ""});
}));
by("filter").addEventListener("submit", event => {
  event.preventDefault();
  go({where: by("where").value.trim(), start: ""});
});
by("sort").addEventListener("change", event => go({sort: event.target.value, start: ""}));
by("ascending").addEventListener("change", event => go({order: event.target.checked ? "asc" : "", start: ""}));
by("unblur").addEventListener("change", () => shown.forEach(item => item.veil?.()));
by("distribution").addEventListener("toggle", () => by("distribution").open && distribution());
by("dropped").addEventListener("toggle", () => by("dropped").open && dropped());
by("reason").addEventListener("change", () => dropped());
by("column").addEventListener("change", distribution);
by("keep").addEventListener("click", () => {
  const name = by("column").value, {where = ""} = state();
  const rule = `${/^[A-Za-z_]\w*$/.test(name) ? name : `"${name.replaceAll('"', '""')}"`} >= ${edges[Number(by("cut").value)]}`;
  go({where: where ? `(${where}) AND ${rule}` : rule, start: ""});
});
by("mark-page").addEventListener("click", () => attempt(() => setMarks(shown, true)));
by("unmark-page").addEventListener("click", () => attempt(() => setMarks(shown, false)));
by("mark-pair").addEventListener("click", () => attempt(async () => {
  await setMarks([opened], !opened.marked);
  by("mark-pair").setAttribute("aria-pressed", opened.marked);
}));
by("like-pair").addEventListener("click", () => { by("pair").close(); lookAlike(opened); });
by("close").addEventListener("click", () => by("pair").close());
by("pair").addEventListener("close", () => opener?.focus());
by("back").addEventListener("click", () => { location.hash = ""; });
by("reload").addEventListener("click", () => attempt(async () => {
  await ask("api/reload", null, {method: "POST"});
  await begin();
  await refresh();
}));
by("previous").addEventListener("click", () => turn(-1));
by("next").addEventListener("click", () => turn(1));
addEventListener("hashchange", refresh);
attempt(async () => { await begin(); await refresh(); });
