// Requests to the server: sampling settings, the events of a stream, and errors in plain words.
const sliders = ["temperature", "top_p", "min_p", "max_tokens"].map(at);
let run = null;  // what /run says
let key = "";

class PlainError extends Error {}

function showSlider(slider) {
  slider.previousElementSibling.value = Number(slider.value).toFixed(slider.step < 1 ? 2 : 0);
}

for (const slider of sliders) {
  slider.addEventListener("input", () => showSlider(slider));
  showSlider(slider);
}

// The settings of a request. Without a seed one is drawn, so that every text can be repeated.
function settings() {
  const seed = at("seed").value.trim();
  if (!/^\d*$/.test(seed) || Number(seed) > Number.MAX_SAFE_INTEGER) throw new PlainError(t("error_seed"));
  const values = Object.fromEntries(sliders.map(slider => [slider.id, Number(slider.value)]));
  return { ...values, seed: seed === "" ? Math.floor(Math.random() * 1e6) : Number(seed) };
}

function plain(error, status) {
  if (status === 429) return t("error_busy");
  if (status === 401) return t("error_key");
  if (status === 503) return t("error_stopping");
  if (error.code === "context_length_exceeded") return t("error_context");
  if (error.param === "prompt" && error.message.includes("at most")) return t("error_prompt");
  return t("error_server", { message: error.message });
}

async function online(work) {
  try {
    return await work;
  } catch (error) {
    throw error.name === "AbortError" ? error : new PlainError(t("error_network"));
  }
}

// Yield the events of a stream. Throws PlainError, and AbortError when `signal` stops it.
async function* stream(path, body, signal) {
  const post = () => online(fetch(path, {
    method: "POST", signal,
    body: JSON.stringify({ model: run.model, ...body, stream: true, stream_options: { include_usage: true } }),
    headers: { "Content-Type": "application/json", ...(key && { Authorization: `Bearer ${key}` }) },
  }));
  let response = await post();
  if (response.status === 401 && (key = window.prompt(t("key"))?.trim() || "")) response = await post();
  if (!response.ok) throw new PlainError(plain((await response.json()).error, response.status));
  let buffer = "";
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  for (;;) {
    const { done, value } = await online(reader.read());
    if (done) return;
    const parts = (buffer + value).split("\n\n");
    buffer = parts.pop();
    for (const part of parts) {
      const data = part.replace(/^data: /, "");
      if (data === "[DONE]" || data.startsWith(":")) continue;
      const event = JSON.parse(data);
      if (event.error) throw new PlainError(plain(event.error, event.error.type === "server_error" ? 503 : 500));
      yield event;
    }
  }
}

// Run `work` while its button stops it, and show what went wrong in `status`.
async function whileStoppable(button, label, status, work) {
  if (button.controller) return button.controller.abort();
  button.controller = new AbortController();
  button.textContent = t("stop");
  button.classList.add("stop");
  status.classList.remove("error");
  try {
    await work(button.controller.signal);
  } catch (error) {
    const stopped = error.name === "AbortError";
    status.classList.toggle("error", !stopped);
    status.textContent = stopped ? `${status.textContent} · ${t("stopped")}` : error.message;
    if (!stopped && !(error instanceof PlainError)) throw error;
  } finally {
    button.controller = null;
    button.textContent = t(label);
    button.classList.remove("stop");
  }
}

// A function that shows the pace of a generation after each token.
function pacer(status) {
  let count = 0, start = null;
  status.textContent = t("waiting");
  return (ending = "", total = null) => {
    start ??= performance.now();
    count = total ?? count + 1;
    const seconds = (performance.now() - start) / 1000;
    const parts = [t(count === 1 ? "count_one" : "count", { count: number.format(count) })];
    if (count > 1 && seconds > 0) parts.push(t("rate", { rate: number.format(Math.round((count - 1) / seconds)) }));
    if (ending) parts.push(ending);
    status.textContent = parts.join(" · ");
  };
}

async function copy(text, status) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {  // a page that is not from this machine may not use the clipboard directly
    const area = element("textarea", { value: text });
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  status.textContent = t("copied");
  setTimeout(() => { status.textContent = ""; }, 2000);
}

function onModifiedEnter(area, form) {
  area.addEventListener("keydown", event => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
  });
}
