// The desk: one sheet of one cluster at a time. Votes go out in the order in which they were made and are sent again
// until the service has them; the next sheet is fetched while this one is worked on, so turning it over costs nothing.
"use strict";

const $ = (id) => document.getElementById(id);
const site = new URLSearchParams(location.search).get("site") || "";
const UNREADABLE = -1;
const POLL_MS = 4000;

let classes = []; // {name, key}
let sheet = null; // {cluster, reason, items: [{item, row, votes}], neighbours}
let tiles = []; // one per item of the sheet, in its order
let labels = new Map(); // item → choice, of this sheet
let gone = new Set(); // items of this sheet that others labelled meanwhile
let selected = new Set(); // positions
let cursor = 0;
let next = null; // promise of the sheet after this one
let skipped = []; // items left for later
const WHY = {
  central: "nearest to the middle of its cluster", near: "near the middle of its cluster", typical: "where most are alike",
  coverage: "many others are like it", uncertainty: "the model is unsure", margin: "the model wavers between two",
  drifted: "unlike what was known", random: "drawn at random",
};
let counts = null; // the progress that is shown
let unsaved = 0;
let chain = Promise.resolve(); // what changes something is sent one after the other
let turning = false;

// -- talking to the service --------------------------------------------------------------------------------------

const address = (path) => `/desk/${path}?site=${encodeURIComponent(site)}`;
const wait = (ms) => new Promise((done) => setTimeout(done, ms));

async function call(path, body) {
  for (let attempt = 0; ; attempt++) {
    let answer = null;
    try {
      answer = await fetch(address(`api/${path}`), body === undefined ? {} : {
        method: "POST", headers: {"Content-Type": "application/json"}, body: JSON.stringify(body),
      });
    } catch (error) { /* the network: tried again below */ }
    if (answer && answer.ok) {
      trouble("");
      return answer.json();
    }
    if (answer && answer.status === 401) {
      location.reload();
      return new Promise(() => {});
    }
    if (answer && answer.status < 500) throw new Error((await answer.json()).error.message);
    trouble("The service does not answer; trying again." + (unsaved ? ` ${unsaved} labels are not saved yet.` : ""));
    await wait(Math.min(500 * 2 ** attempt, 5000));
  }
}

function inOrder(work) {
  chain = chain.then(work).catch((error) => trouble(String(error.message || error)));
  return chain;
}

const actionName = () => Array.from(crypto.getRandomValues(new Uint8Array(16)), (b) => b.toString(16).padStart(2, "0")).join("");

async function fetchSheet(beside, holding = null) {
  const answer = await call("sheet", {beside, holding});
  if (answer.sheet) for (const row of picturesOf(answer.sheet)) new Image().src = pictureOf(row); // into the cache
  return answer;
}

const pictureOf = (row) => address(`picture/${row}`);
const picturesOf = (of) => [...of.items.map((each) => each.row), ...of.neighbours];

// -- what is shown -----------------------------------------------------------------------------------------------

function say(text) { $("said").textContent = text; }

function trouble(text) {
  $("trouble").textContent = text;
  $("trouble").hidden = !text;
}

function showProgress(p) {
  counts = p;
  const done = p.labelled + p.unreadable;
  $("bar").max = Math.max(p.total, 1);
  $("bar").value = done;
  const own = p.own > done ? p.own : 0; // where two opinions are wanted, one's own work is not done work yet
  const rest = [[own, "by you"], [p.unreadable, "unreadable"], [p.disputed, "disputed"]].filter(([n]) => n).map(([n, word]) => ` · ${n} ${word}`);
  $("progress").textContent = `${done} of ${p.total}${rest.join("")}`;
}

const nameOf = (choice) => choice === UNREADABLE ? "unreadable" : classes[choice].name;

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function image(row, alt) {
  const made = element("img");
  made.loading = "lazy";
  made.decoding = "async";
  made.draggable = false;
  made.alt = alt;
  made.src = pictureOf(row);
  return made;
}

function show(answer, news = "") {
  showProgress(answer.progress);
  sheet = answer.sheet;
  labels = new Map();
  gone = new Set();
  $("desk").hidden = $("bottom").hidden = !sheet;
  $("empty").hidden = Boolean(sheet);
  if (!sheet) {
    tiles = [];
    $("sheet").replaceChildren();
    $("neighbours").replaceChildren();
    return showEmpty(answer.progress);
  }
  const disputed = sheet.items[0].votes.length > 0;
  const count = sheet.items.length === 1 ? "1 picture" : `${sheet.items.length} pictures`;
  $("title").textContent = disputed ? `Two people differ: ${count}` : `Cluster ${sheet.cluster}: ${count}`;
  $("hint").textContent = disputed ? "You decide. What the two said is written on each." : `Chosen because: ${WHY[sheet.reason] || sheet.reason}`;
  tiles = sheet.items.map((each, place) => {
    const tile = element("div", "tile");
    tile.setAttribute("role", "option");
    tile.tabIndex = -1;
    tile.append(image(each.row, `picture ${place + 1}`));
    if (disputed) tile.append(element("span", "two", each.votes.map(nameOf).join(" / ")));
    tile.append(element("span", "stamp"));
    tile.addEventListener("click", (event) => pointed(place, event));
    return tile;
  });
  $("sheet").className = tiles.length <= 2 ? "few" : tiles.length <= 6 ? "some" : tiles.length <= 20 ? "many" : "";
  $("sheet").replaceChildren(...tiles);
  $("sheet").dataset.first = sheet.items[0].item;
  $("neighbours").replaceChildren(...sheet.neighbours.map((row) => image(row, "")));
  $("around").hidden = !sheet.neighbours.length;
  cursor = 0;
  selected = new Set(disputed ? [0] : tiles.keys());
  paint();
  tiles[0].focus({preventScroll: true});
  window.scrollTo(0, 0);
  // After the votes that are under way: before them, the service would hand out again what was just labelled.
  const beside = [...sheet.items.map((each) => each.item), ...skipped];
  next = chain.then(() => fetchSheet(beside));
  next.catch(() => {});
  say(`${news}${$("title").textContent}.`); // how far all is, the bar says: the last vote may still be on its way
}

function showEmpty(p) {
  const others = p.open;
  $("empty-title").textContent = others ? "Nothing for you right now" : p.total ? "All labelled" : "Nothing is asked for yet";
  $("empty-text").textContent = others
    ? `${others} of ${p.total} wait for other people: they have them before them, or a second or third opinion is needed. This page looks again by itself.`
    : "New rows appear here by themselves when the loop asks for labels.";
  say(`${$("empty-title").textContent}. ${$("progress").textContent} done.`);
}

function paint() {
  tiles.forEach((tile, place) => {
    const item = sheet.items[place].item, choice = labels.get(item);
    tile.setAttribute("aria-selected", selected.has(place));
    tile.classList.toggle("done", choice !== undefined || gone.has(item));
    tile.classList.toggle("unreadable", choice === UNREADABLE);
    tile.tabIndex = place === cursor ? 0 : -1;
    const stamp = tile.lastChild;
    stamp.textContent = gone.has(item) ? "taken" : choice === undefined ? "" : nameOf(choice);
    stamp.style.setProperty("--class", choice >= 0 ? choice : 0);
    tile.setAttribute("aria-label", `picture ${place + 1}${stamp.textContent ? ", " + stamp.textContent : ""}`);
  });
  const count = selected.size;
  for (const button of document.querySelectorAll("#classes button, #unreadable")) button.disabled = !count;
}

// -- what people do ----------------------------------------------------------------------------------------------

const openPlaces = () => [...tiles.keys()].filter((p) => !labels.has(sheet.items[p].item) && !gone.has(sheet.items[p].item));

function moveTo(place, extend) {
  if (place < 0 || place >= tiles.length) return;
  if (!extend) selected = new Set([place]);
  else selected.add(cursor).add(place);
  cursor = place;
  paint();
  tiles[place].focus();
}

function columns() {
  const top = tiles[0].offsetTop;
  const second = tiles.findIndex((tile) => tile.offsetTop > top);
  return second < 0 ? tiles.length : second;
}

function pointed(place, event) {
  if (event.shiftKey) {
    const [from, to] = [Math.min(cursor, place), Math.max(cursor, place)];
    for (let p = from; p <= to; p++) selected.add(p);
  } else if (selected.size === openPlaces().length && selected.size > 1) selected = new Set([place]);
  else if (selected.has(place)) selected.delete(place);
  else selected.add(place);
  cursor = place;
  paint();
}

function label(choice) {
  if (!sheet || turning || !selected.size) return;
  const items = [...selected].map((place) => sheet.items[place].item).filter((item) => !gone.has(item));
  if (!items.length) return;
  for (const item of items) labels.set(item, choice);
  unsaved += items.length;
  const action = actionName(), votes = Object.fromEntries(items.map((item) => [item, choice]));
  inOrder(async () => {
    const answer = await call("votes", {action, votes});
    unsaved -= items.length;
    showProgress(answer.progress);
    const refused = Object.entries(answer.refused);
    if (refused.length) say(`${refused.length} not taken: ${refused[0][1]}.`);
    for (const [item] of refused) if (labels.delete(Number(item))) gone.add(Number(item));
    if (sheet) paint();
  });
  const left = openPlaces();
  say(`${items.length} labelled ${nameOf(choice)}. ${left.length ? left.length + " left on this sheet." : ""}`);
  if (!left.length) return turn();
  selected = new Set(sheet.items[0].votes.length ? left.slice(0, 1) : left);
  cursor = left[0];
  paint();
  tiles[cursor].focus();
}

async function turn() {
  turning = true;
  try {
    let answer = await next;
    if (answer.sheet) answer.progress = counts; // fetched some votes ago, it knows less than the page
    else {
      skipped = []; // what was left for later comes now
      await chain;
      answer = await fetchSheet([]);
    }
    show(answer);
  } catch (error) {
    trouble(String(error.message || error));
  } finally {
    turning = false;
  }
}

function later() {
  if (!sheet || turning) return;
  skipped.push(...sheet.items.map((each) => each.item));
  say("Left for later.");
  turn();
}

function undo() {
  if (turning) return;
  inOrder(async () => {
    const answer = await call("undo", {});
    showProgress(answer.progress);
    if (!answer.items.length) return say("There is nothing to undo.");
    skipped = skipped.filter((item) => !answer.items.includes(item));
    const news = `Undone: ${answer.items.length} ${answer.items.length === 1 ? "label" : "labels"}. `;
    const here = sheet ? sheet.items.map((each) => each.item) : [];
    if (answer.items.every((item) => here.includes(item))) {
      for (const item of answer.items) labels.delete(item);
      selected = new Set(answer.items.map((item) => here.indexOf(item)));
      cursor = Math.min(...selected);
      paint();
      tiles[cursor].focus();
      say(news);
    } else {
      const back = await fetchSheet([], answer.items[0]);
      show(back, news);
      const places = [...tiles.keys()].filter((place) => answer.items.includes(sheet.items[place].item));
      if (places.length) {
        selected = new Set(places);
        cursor = places[0];
        paint();
        tiles[cursor].focus();
      }
    }
  });
}

const selectAll = () => {
  if (!sheet) return;
  selected = new Set(openPlaces());
  paint();
};

function pressed(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || $("help").open) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  const steps = {ArrowLeft: -1, ArrowRight: 1, ArrowUp: -1, ArrowDown: 1};
  if (key === "?") $("help").showModal();
  else if (key === "u") undo();
  else if (!sheet) return;
  else if (key in steps) moveTo(cursor + steps[key] * (key === "ArrowUp" || key === "ArrowDown" ? columns() : 1), event.shiftKey);
  else if (key === "Home") moveTo(0, event.shiftKey);
  else if (key === "End") moveTo(tiles.length - 1, event.shiftKey);
  else if (key === " " && !event.target.closest("button")) pointed(cursor, {});
  else if (key === "a") selectAll();
  else if (key === "s") later();
  else if (key === "p") document.body.classList.toggle("pixels");
  else if (key === "x") label(UNREADABLE);
  else {
    const choice = classes.findIndex((each) => each.key && each.key === key);
    if (choice < 0 || event.repeat) return;
    label(choice);
  }
  event.preventDefault();
}

// -- the start ---------------------------------------------------------------------------------------------------

async function start() {
  const desk = await call("desk");
  classes = desk.classes;
  document.title = `${desk.site} · annotation desk`;
  $("site").textContent = desk.site;
  $("annotator").textContent = desk.annotator;
  $("classes").replaceChildren(...classes.map((each, choice) => {
    const button = element("button", "class");
    button.type = "button";
    if (each.key) button.append(element("kbd", "", each.key));
    if (each.key !== each.name) button.append(` ${each.name}`);
    button.style.setProperty("--class", choice);
    button.setAttribute("aria-label", `label ${each.name}${each.key ? ", key " + each.key : ""}`);
    button.addEventListener("click", () => label(choice));
    return button;
  }));
  $("help-classes").replaceChildren(...classes.filter((each) => each.key).flatMap((each) => [element("kbd", "", each.key), " "]));
  $("unreadable").addEventListener("click", () => label(UNREADABLE));
  $("all").addEventListener("click", selectAll);
  $("later").addEventListener("click", later);
  $("undo").addEventListener("click", undo);
  $("help-button").addEventListener("click", () => $("help").showModal());
  $("logout").action = address("logout");
  document.addEventListener("keydown", pressed);
  window.addEventListener("beforeunload", (event) => { if (unsaved) event.preventDefault(); });
  show(await fetchSheet([]));
  setInterval(async () => {
    if (!sheet && !turning && document.visibilityState === "visible") {
      const answer = await fetchSheet([]);
      if (answer.sheet && !sheet) show(answer);
      else if (!sheet) { showProgress(answer.progress); showEmpty(answer.progress); }
    }
  }, POLL_MS);
}

start().catch((error) => trouble(String(error.message || error)));
