"use strict";
// The page of `recsys serve`: it asks the server's own routes, and needs nothing else.

const $ = (id) => document.getElementById(id);
const chosen = new Map(); // id -> title
let explains = true;

function say(text) {
  $("status").textContent = text;
}

async function ask(path, body) {
  const headers = {};
  const token = sessionStorage.getItem("token");
  if (token) headers.Authorization = `Bearer ${token}`;
  const options = { headers };
  if (body !== undefined) Object.assign(options, { method: "POST", body: JSON.stringify(body) });
  const response = await fetch(path, options);
  const answer = await response.json();
  if (response.status === 401) {
    $("token-form").hidden = false;
    $("token").focus();
  }
  if (!response.ok) throw new Error(answer.detail);
  return answer;
}

function element(name, text, properties = {}) {
  const made = Object.assign(document.createElement(name), properties);
  made.textContent = text;
  return made;
}

function titled(item) {
  return item.title || String(item.id);
}

function row(item, ...more) {
  const line = document.createElement("li");
  line.append(...more);
  line.dataset.id = item.id;
  return line;
}

function button(text, label, act) {
  const made = element("button", text, { type: "button" });
  made.setAttribute("aria-label", label);
  made.addEventListener("click", act);
  return made;
}

function showChosen() {
  const lines = [...chosen].map(([id, title]) =>
    row({ id }, element("div", title), button("Remove", `Remove ${title}`, () => {
      chosen.delete(id);
      showChosen();
      say(`${title} is removed.`);
      $("search").focus();
    }))
  );
  $("chosen").replaceChildren(...lines);
}

function choose(item) {
  chosen.set(item.id, titled(item));
  $("user").value = "";
  showChosen();
  say(`${titled(item)} is chosen.`);
}

let asked = 0;
async function search() {
  const number = ++asked;
  try {
    const { items } = await ask(`items?k=8&q=${encodeURIComponent($("search").value)}`);
    if (number !== asked) return;
    $("found").replaceChildren(...items.map((item) =>
      row(item, element("div", titled(item)), button("Add", `Add ${titled(item)}`, () => choose(item)))
    ));
    if (!items.length) say("No title has that.");
  } catch (error) {
    say(error.message);
  }
}

async function lists() {
  const where = $("where").value.trim();
  const question = { k: 10, explain: explains ? 3 : 0, keep_seen: $("keep").checked, ...(where && { where }) };
  const user = $("user").value.trim();
  if (user) {
    const { lists: [list] } = await ask("recommend", { users: [user], ...question });
    return list;
  }
  return ask("session/recommend", { items: [...chosen.keys()].map((id) => ({ id })), ...question });
}

async function recommend() {
  try {
    let list;
    try {
      list = await lists();
    } catch (error) {
      if (!explains || !/explain/.test(error.message)) throw error;
      explains = false; // a model whose scores are no sums
      list = await lists();
    }
    show(list.items, "Recommended", list.fallback ? "Popular items; the numbers are users." : "");
    say(`${list.items.length} items are recommended.`);
  } catch (error) {
    say(error.message);
  }
}

async function similar(item) {
  try {
    const { items } = await ask(`items/${encodeURIComponent(item.id)}/similar?k=10`);
    show(items, `Similar to ${titled(item)}`, "");
    say(`${items.length} similar items.`);
    $("list-title").focus();
  } catch (error) {
    say(error.message);
  }
}

function show(items, title, hint) {
  $("list-title").textContent = title;
  $("list-hint").textContent = items.length ? hint : "No item passes.";
  $("list").replaceChildren(...items.map((item) => {
    const reasons = [];
    if (item.because && item.because.length) {
      const added = item.because.map((had) => `${titled(had)} (${had.score >= 0 ? "+" : ""}${had.score.toFixed(3)})`);
      reasons.push(element("div", `because of ${added.join(", ")}`, { className: "why" }));
    }
    return row(
      item,
      element("div", titled(item)),
      element("span", Number.isInteger(item.score) ? item.score : item.score.toFixed(4), { className: "score" }),
      button("Similar", `Items similar to ${titled(item)}`, () => similar(item)),
      button("Add", `Add ${titled(item)}`, () => choose(item)),
      ...reasons,
    );
  }));
}

const mib = (bytes) => (bytes / 2 ** 20).toFixed(1);

async function gauge() {
  try {
    const model = await ask("model");
    const memory = model.memory;
    $("model").textContent =
      `${model.kind}, ${model.items.toLocaleString()} items, ${model.users.toLocaleString()} users, version ${model.version}`;
    $("attributes").textContent = model.attributes.length
      ? `such as: ${model.attributes.map((one) => `${one.name} (${one.kind})`).slice(0, 8).join(", ")}`
      : "The items have no attributes.";
    $("where").disabled = !model.attributes.length;
    $("memory").textContent =
      `${mib(memory.resident_bytes)} MiB are held, ${mib(memory.predicted_bytes)} are predicted at most, the ceiling is ${mib(memory.ceiling_bytes)}.`;
    $("held").style.width = `${100 * memory.resident_bytes / memory.ceiling_bytes}%`;
    $("terms").replaceChildren(...memory.terms.map((term) => {
      const line = document.createElement("tr");
      line.append(element("td", term.name), element("td", mib(term.bytes)));
      return line;
    }));
  } catch (error) {
    say(error.message);
  }
}

let typing;
$("search").addEventListener("input", () => {
  clearTimeout(typing);
  typing = setTimeout(search, 200);
});
for (const [form, act] of [["search-form", search], ["ask-form", recommend]]) {
  $(form).addEventListener("submit", (event) => {
    event.preventDefault();
    act();
  });
}
$("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("token", $("token").value);
  $("token-form").hidden = true;
  start();
});

async function start() {
  await gauge();
  await search();
}
start();
setInterval(() => document.hidden || gauge(), 5000);
