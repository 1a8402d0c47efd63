"use strict";

const find = (selector, inside = document) => inside.querySelector(selector);
const copy = (name) => find(`#${name}`).content.firstElementChild.cloneNode(true);
const percent = (value) => `${Math.round(100 * value)}%`;
const plain = (text) => text.normalize("NFD").replace(/\p{M}/gu, "").toLowerCase();
const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const bytes = (base64) => Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
const audio = find("#audio"), list = find("#list"), search = find("#search"), sort = find("#sort");

function clock(seconds) {
  const whole = Math.floor(seconds), two = (number) => String(number).padStart(2, "0");
  const minutes = Math.floor(whole / 60), hours = Math.floor(minutes / 60);
  return (hours ? `${hours}:${two(minutes % 60)}` : minutes) + ":" + two(whole % 60);
}

// "Mood---Sad" is Sad of the group Mood; a label without a group is one of "Tags".
function parts(label) {
  const cut = label.indexOf("---");
  return cut < 0 ? ["Tags", label] : [label.slice(0, cut), label.slice(cut + 3)];
}

// ---- the list ---------------------------------------------------------------------------------

const groups = new Map(); // name → number, in the order in which they come

// The style sheet's name of the colour of a label's group
function colour(label) {
  const [group] = parts(label);
  if (!groups.has(group)) groups.set(group, groups.size);
  return `--group-${groups.get(group) % 6}`;
}

function colourIn(element, label) {
  element.style.setProperty("--group", `var(${colour(label)})`);
}

const tracks = [...document.querySelectorAll("script.track")].map((script, number) => {
  const track = JSON.parse(script.textContent), item = copy("track");
  const picture = script.nextElementSibling;
  Object.assign(track, { number, item, picture, values: new Map(track.tags) });
  track.text = plain([track.title, track.path, ...track.tags.map(([label]) => label)].join("\n"));
  find(".title", item).textContent = track.title;
  find(".path", item).textContent = track.path;
  find(".length", item).textContent = clock(track.seconds);
  for (const [label, value] of track.tags) {
    const button = document.createElement("button"), [group, name] = parts(label);
    Object.assign(button, { type: "button", textContent: name });
    button.title = `${group}: ${name}, ${percent(value)}. Sort by this tag`;
    button.ariaLabel = button.title;
    button.ariaPressed = false;
    button.dataset.label = label;
    button.dataset.percent = percent(value);
    button.style.setProperty("--value", percent(value));
    colourIn(button, label);
    button.onclick = () => {
      sort.value = sort.value === `tag:${label}` ? "" : `tag:${label}`;
      arrange();
    };
    find(".tags", item).append(button);
  }
  find(".open", item).onclick = () => (opened === track ? close() : open(track));
  find(".play", item).onclick = () => playOrPause(track);
  return track;
});

for (const label of [...new Set(tracks.flatMap((track) => [...track.values.keys()]))].sort()) {
  const [group, name] = parts(label);
  let section = [...sort.querySelectorAll("optgroup")].find((one) => one.label === group);
  if (!section) {
    section = document.createElement("optgroup");
    section.label = group;
    sort.append(section);
  }
  section.append(new Option(name, `tag:${label}`));
}

// Put the tracks in the chosen order.
function arrange() {
  const key = sort.value;
  const label = key.startsWith("tag:") ? key.slice(4) : null;
  const value = (track) => track.values.get(label) ?? -1;
  const order = [...tracks].sort(
    label !== null ? (a, b) => value(b) - value(a)
    : key === "title" ? (a, b) => a.title.localeCompare(b.title, undefined, { numeric: true })
    : key === "seconds" ? (a, b) => a.seconds - b.seconds
    : (a, b) => a.number - b.number);
  for (const button of list.querySelectorAll("[aria-pressed=true]")) button.ariaPressed = false;
  for (const { item, values } of order) {
    if (!values.has(label)) break; // those that have it come first
    const buttons = [...item.querySelectorAll(".tags button")];
    buttons.find((button) => button.dataset.label === label).ariaPressed = true;
  }
  const focused = document.activeElement;
  list.replaceChildren(...order.map((track) => track.item));
  if (list.contains(focused)) focused.focus();
}

// Show the tracks that have each word of the search.
function filter() {
  const words = plain(search.value).split(/\s+/);
  for (const track of tracks)
    track.item.hidden = !words.every((word) => track.text.includes(word));
  const shown = visible(), all = tracks.length;
  const length = clock(shown.reduce((sum, track) => sum + track.seconds, 0));
  const count = shown.length === all ? all : `${shown.length} of ${all}`;
  find("#count").textContent = `${count} ${all === 1 ? "track" : "tracks"}, ${length}`;
  find("#none").hidden = shown.length > 0 || !all;
}

// Tracks that the search leaves, as listed
function visible() {
  const byItem = new Map(tracks.map((track) => [track.item, track]));
  return [...list.children].filter((item) => !item.hidden).map((item) => byItem.get(item));
}

function addLegend() {
  if (groups.size < 2 || groups.size > 6) return; // above six, colours come again
  for (const group of groups.keys()) {
    const span = document.createElement("span");
    span.textContent = group;
    colourIn(span, `${group}---`);
    find("#groups").append(span);
  }
}

// ---- an opened track --------------------------------------------------------------------------

let opened = null; // the track whose picture shows and whose music plays
let position = 0; // seconds
let wanted = null; // a position that the audio is still to be given

function open(track) {
  const head = find(".head", track.item), top = head.getBoundingClientRect().top;
  close();
  opened = track;
  position = 0;
  wanted = null;
  track.item.classList.add("opened");
  find(".open", track.item).ariaExpanded = true;
  const detail = copy("detail");
  detail.ariaLabel = track.title;
  track.item.append(detail);
  find(".seek", detail).ariaValueMax = Math.round(track.seconds);
  track.data = JSON.parse(track.picture.textContent);
  addRows(detail, track.data);
  addAxis(find(".axis", detail), track.seconds);
  listen(find(".seek", detail), track);
  draw();
  audio.src = source(track);
  if (list.contains(head)) scrollBy(0, head.getBoundingClientRect().top - top); // it stays in place
  follow();
  track.item.scrollIntoView({ block: "nearest" });
}

function close() {
  if (!opened) return;
  audio.pause();
  find(".detail", opened.item).remove();
  opened.item.classList.remove("opened", "playing");
  find(".open", opened.item).ariaExpanded = false;
  opened.data = opened = null;
}

// The link, or the audio that the page holds
function source(track) {
  if (track.audio === undefined) return track.link;
  const content = bytes(track.picture.nextElementSibling.textContent);
  track.blob ??= URL.createObjectURL(new Blob([content], { type: track.audio }));
  return track.blob;
}

function addRows(detail, data) {
  data.values = bytes(data.heat);
  const byGroup = data.rows.map((label, row) => ({ label, row, group: parts(label)[0] }));
  const first = new Map(); // a group's rows stay together, the best group first
  for (const { group, row } of byGroup) if (!first.has(group)) first.set(group, row);
  byGroup.sort((a, b) => first.get(a.group) - first.get(b.group) || a.row - b.row);
  data.shown = byGroup.map(({ label, row, group }) => {
    const element = copy("row"), n = data.times.length;
    const values = data.values.subarray(row * n, (row + 1) * n);
    colourIn(element, label);
    const peak = values.indexOf(Math.max(...values)), name = parts(label)[1];
    find(".name", element).textContent = name;
    find(".label", element).title = `${group}: ${name}`;
    find("canvas", element).ariaLabel =
      `${group}: ${name} over time, at most ${percent(values[peak] / 255)} at ${clock(data.times[peak])}`;
    find(".axis", detail).before(element);
    return { element, label, values, output: find("output", element) };
  });
}

function addAxis(axis, seconds) {
  const most = axis.clientWidth / 90;
  const steps = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200];
  const step = steps.find((one) => seconds / one <= most) ?? 14400;
  for (let second = 0; second <= seconds - step / 3; second += step) {
    const mark = document.createElement("span");
    mark.textContent = clock(second);
    mark.style.left = `${(100 * second) / seconds}%`;
    axis.append(mark);
  }
}

// Draw the opened track in the colours of the scheme, light or dark.
async function draw() {
  if (!opened) return;
  const { data, item, seconds } = opened;
  for (const { element, label, values } of data.shown) {
    const canvas = find("canvas", element), context = canvas.getContext("2d");
    canvas.width = 1200; // and clear it
    canvas.height = 1;
    context.fillStyle = style(colour(label));
    const place = (second) => Math.round((1200 * second) / seconds);
    data.times.forEach((time, i) => { // windows meet halfway between their centres
      const start = i ? place((data.times[i - 1] + time) / 2) : 0;
      const end = i + 1 < values.length ? place((time + data.times[i + 1]) / 2) : 1200;
      context.globalAlpha = values[i] / 255;
      context.fillRect(start, 0, end - start, 1);
    });
  }
  if (!data.mel) return;
  const image = new Image();
  image.src = `data:image/webp;base64,${data.mel}`;
  await image.decode();
  const canvas = find(".mel", item), colours = ramp();
  if (!canvas) return; // closed meanwhile
  Object.assign(canvas, { width: image.width, height: image.height });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(image, 0, 0);
  const pixels = context.getImageData(0, 0, image.width, image.height);
  for (let i = 0; i < pixels.data.length; i += 4) pixels.data.set(colours[pixels.data[i]], i);
  context.putImageData(pixels, 0, 0);
}

// 256 colours [red, green, blue] from those of the style sheet
function ramp() {
  const stops = style("--ramp").split(" ")
    .map((hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16)));
  return Array.from({ length: 256 }, (_, grey) => {
    const place = (grey / 255) * (stops.length - 1), i = Math.min(Math.floor(place), stops.length - 2);
    return stops[i].map((low, c) => low + (place - i) * (stops[i + 1][c] - low));
  });
}

// ---- music ------------------------------------------------------------------------------------

function playOrPause(track) {
  if (opened !== track) open(track);
  if (audio.paused) audio.play().catch(() => {}); // "error" below says it
  else audio.pause();
}

function seek(seconds) {
  wanted = position = Math.min(Math.max(seconds, 0), opened.seconds);
  settle();
  follow();
}

// One seek at a time, and none before the audio is known: Chromium may hang in others.
function settle() {
  if (wanted === null || audio.readyState === 0 || audio.seeking) return;
  audio.currentTime = wanted;
  wanted = null;
}

function hear() {
  if (audio.readyState > 0 && wanted === null) position = audio.currentTime;
  follow();
}

// Put the cursor, and the values beside the tags, where the music is.
function follow() {
  if (!opened) return;
  const slider = find(".seek", opened.item), { data, seconds } = opened;
  place(find(".cursor", slider), position / seconds, position);
  slider.ariaValueNow = Math.round(position);
  slider.ariaValueText = `${clock(position)} of ${clock(seconds)}`;
  let window_ = 0;
  while (position > (data.times[window_] + data.times[window_ + 1]) / 2) window_ += 1;
  for (const { output, values } of data.shown)
    output.textContent = values.length ? percent(values[window_] / 255) : "";
}

function place(line, fraction, seconds) {
  line.style.left = `${100 * fraction}%`;
  line.classList.toggle("late", fraction > 0.8); // its time stands on the left
  find("output", line).textContent = clock(seconds);
}

function listen(slider, track) {
  const hover = find(".hover", slider);
  const at = (event) => {
    const { left, width } = slider.getBoundingClientRect();
    return Math.min(Math.max((event.clientX - left) / width, 0), 1);
  };
  slider.onpointerdown = (event) => {
    if (event.button) return;
    slider.setPointerCapture(event.pointerId);
    seek(at(event) * track.seconds);
  };
  slider.onpointermove = (event) => {
    if (event.buttons) seek(at(event) * track.seconds);
    hover.hidden = event.pointerType !== "mouse" || event.buttons > 0;
    place(hover, at(event), at(event) * track.seconds);
  };
  slider.onpointerleave = () => (hover.hidden = true);
}

function tick() {
  if (audio.paused) return;
  hear();
  requestAnimationFrame(tick);
}

function showPlaying() {
  for (const track of tracks) {
    const playing = track === opened && !audio.paused;
    track.item.classList.toggle("playing", playing);
    find(".play", track.item).ariaLabel = `${playing ? "Pause" : "Play"} ${track.title}`;
  }
}

audio.onplay = () => { showPlaying(); tick(); };
audio.onpause = showPlaying;
audio.ontimeupdate = hear;
audio.onloadedmetadata = audio.onseeked = settle;
audio.onended = () => {
  const shown = visible(), next = shown[shown.indexOf(opened) + 1];
  if (next) playOrPause(next);
};
audio.onerror = () => {
  if (!opened) return;
  const problem = find(".problem", opened.item);
  problem.hidden = false;
  problem.textContent =
    `${opened.path} cannot be played: it is not there, or this browser does not know its format.`;
};

// ---- keyboard ---------------------------------------------------------------------------------

// Focus the track that comes ``step`` after the focused or opened one.
function move(step) {
  const shown = visible(), focused = document.activeElement.closest("li") ?? opened?.item;
  const now = shown.findIndex((track) => track.item === focused);
  const next = shown[Math.min(Math.max(now + step, 0), shown.length - 1)];
  if (next) find(".open", next.item).focus();
}

document.onkeydown = (event) => {
  const { key, target } = event;
  if (event.ctrlKey || event.altKey || event.metaKey) return;
  if (target === search && (key === "ArrowDown" || key === "Enter")) move(-tracks.length);
  else if (target === search && key === "Escape") { search.value = ""; filter(); }
  else if (target.matches("input, select")) return;
  else if (key === "ArrowDown" || key === "ArrowUp") move(key === "ArrowDown" ? 1 : -1);
  else if (key === "ArrowRight" && opened) seek(position + 5);
  else if (key === "ArrowLeft" && opened) seek(position - 5);
  else if (key === "Home" && target.matches(".seek")) seek(0);
  else if (key === "End" && target.matches(".seek")) seek(opened.seconds);
  else if (key === " " && !target.matches("button:not(.open)")) {
    const focused = tracks.find((track) => track.item === target.closest("li"));
    if (focused ?? opened) playOrPause(focused ?? opened);
  } else if (key === "/") search.focus();
  else return;
  event.preventDefault();
};
// Firefox presses a button when the space bar is let go.
document.onkeyup = ({ key, target }) => !(key === " " && target.matches(".open"));

// ---- start ------------------------------------------------------------------------------------

find("#tools").onsubmit = () => false;
search.oninput = filter;
sort.onchange = arrange;
find("#none button").onclick = () => { search.value = ""; filter(); search.focus(); };
matchMedia("(prefers-color-scheme: dark)").onchange = draw;
arrange();
filter();
showPlaying();
addLegend();
