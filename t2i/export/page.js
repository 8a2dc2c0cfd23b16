// Samples images in the browser, from a folder that `t2i export --page` wrote; onnxruntime-web runs the graphs.
//
// A prompt and a seed give the image of `t2i sample`: prompts are cleaned and tokenized, and noise is drawn, as in the Python package.
// Axes: R rows of a graph (the caption, then the null caption), T text tokens, S slots, K codes.

const FILES = {
  "onnxruntime-web": "dist/ort.wasm.bundle.min.mjs",
  "@huggingface/tokenizers": "dist/tokenizers.min.mjs",
};
const CDN = "https://cdn.jsdelivr.net/npm";
const MOST_CHARACTERS = 4096, MOST_IMAGES = 16;
const OWN_SEED = 1n << 32n; // seeds from here on belong to a single image; people choose smaller ones
const FRAME_MS = 50; // longest time without letting the browser paint

// ---- random numbers, as in t2i/seeding.py --------------------------------------------------------------------------

const u64 = (x) => BigInt.asUintN(64, x);
const GAMMA = 0x9e3779b97f4a7c15n;

function mix(x) {
  x = u64((x ^ (x >> 30n)) * 0xbf58476d1ce4e5b9n);
  x = u64((x ^ (x >> 27n)) * 0x94d049bb133111ebn);
  return x ^ (x >> 31n);
}

const BLAKE_START = [
  0x6a09e667f3bcc908n, 0xbb67ae8584caa73bn, 0x3c6ef372fe94f82bn, 0xa54ff53a5f1d36f1n, 0x510e527fade682d1n, 0x9b05688c2b3e6c1fn,
  0x1f83d9abfb41bd6bn, 0x5be0cd19137e2179n,
];
const BLAKE_ORDER = [
  "0123456789abcdef", "ea489fd61c02b753", "b8c052fdae367194", "7931dcbe265a40f8", "905724afe1bc683d", "2c6a0b834d75fe19",
  "c51fed4a0763928b", "db7ec13950f4862a", "6fe9b308c2d714a5", "a2847615fb9e3cd0",
].map((row) => [...row].map((digit) => parseInt(digit, 16)));
const BLAKE_PLACES = [0, 1, 2, 3].flatMap((i) => [[i, 4 + i, 8 + i, 12 + i]]);
const BLAKE_DIAGONALS = [0, 1, 2, 3].map((i) => [i, 4 + ((i + 1) & 3), 8 + ((i + 2) & 3), 12 + ((i + 3) & 3)]);
const rotated = (x, bits) => u64((x >> bits) | (x << (64n - bits)));

// The first 8 bytes of BLAKE2b with a digest of that length (RFC 7693), as an integer.
function blake2b(bytes) {
  const h = [...BLAKE_START];
  h[0] ^= 0x01010008n;
  const blocks = Math.max(1, Math.ceil(bytes.length / 128));
  const padded = new DataView(new ArrayBuffer(128 * blocks));
  new Uint8Array(padded.buffer).set(bytes);
  for (let block = 0; block < blocks; block++) {
    const v = [...h, ...BLAKE_START];
    v[12] ^= BigInt(Math.min(bytes.length, 128 * (block + 1)));
    if (block === blocks - 1) v[14] = u64(~v[14]);
    for (let round = 0; round < 12; round++) {
      const order = BLAKE_ORDER[round % 10];
      [...BLAKE_PLACES, ...BLAKE_DIAGONALS].forEach(([a, b, c, d], i) => {
        const [x, y] = [order[2 * i], order[2 * i + 1]].map((word) => padded.getBigUint64(128 * block + 8 * word, true));
        v[a] = u64(v[a] + v[b] + x);
        v[d] = rotated(v[d] ^ v[a], 32n);
        v[c] = u64(v[c] + v[d]);
        v[b] = rotated(v[b] ^ v[c], 24n);
        v[a] = u64(v[a] + v[b] + y);
        v[d] = rotated(v[d] ^ v[a], 16n);
        v[c] = u64(v[c] + v[d]);
        v[b] = rotated(v[b] ^ v[c], 63n);
      });
    }
    h.forEach((_, i) => (h[i] ^= v[i] ^ v[i + 8]));
  }
  return h[0];
}

const keyOf = (text) => blake2b(new TextEncoder().encode(text)) >> 1n;

// Uniforms in [0, 1), a function of the seed, the purpose and the id; equal to those of Python in every bit.
export function uniform(seed, purpose, id, count) {
  const start = mix(u64(seed + GAMMA * keyOf(purpose)));
  let x = mix(u64(start + GAMMA * (BigInt(id) + 1n)));
  return Float64Array.from({ length: count }, () => Number(mix((x = u64(x + GAMMA))) >> 11n) * 2 ** -53);
}

// Standard normals by Box and Muller.
export function normal(seed, purpose, id, count) {
  const pairs = Math.ceil(count / 2), u = uniform(seed, purpose, id, 2 * pairs);
  const of = (i, wave) => Math.sqrt(-2 * Math.log1p(-u[i])) * wave(2 * Math.PI * u[pairs + i]);
  return Float32Array.from({ length: count }, (_, i) => (i < pairs ? of(i, Math.cos) : of(i - pairs, Math.sin)));
}

// Standard Gumbel noise of the codes of a slot.
export function gumbel(seed, slot, codes) {
  return Float32Array.from(uniform(seed, "sample/gumbel", slot, codes), (u) => -Math.log(-Math.log(Math.max(u, 2 ** -54))));
}

// The seed of image k of a cleaned prompt.
export function imageSeed(seed, prompt, k) {
  return k === 0 && seed >= OWN_SEED ? seed : keyOf([seed, prompt, k].join("/"));
}

// ---- prompts --------------------------------------------------------------------------------------------------------

const INVISIBLE =
  /[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\u00ad\u061c\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff\u{e0000}-\u{e007f}]/gu;
const SPACES = /[\s\x1c-\x1f\x85]+/u;
const WORDS = /[\p{L}\p{N}_]+(?:['\u2019][\p{L}\p{N}_]+)*/gu;

export function cleanPrompt(prompt) {
  const words = prompt.replace(INVISIBLE, "").normalize("NFC").split(SPACES).filter(Boolean);
  const cleaned = [...words.join(" ")];
  if (cleaned.length > MOST_CHARACTERS) throw new Error(`the prompt has ${cleaned.length} characters; shorten it to ${MOST_CHARACTERS}`);
  if (!cleaned.length) throw new Error("the prompt is empty; describe an image, as in 'a small red circle'");
  return cleaned.join("");
}

// Returns a function from a cleaned prompt to {ids, cut}: ids without padding, and true if some were cut off.
export async function tokenizerOf(text) {
  const file = await fetchJson(text.file);
  if (text.kind === "words") {
    const rows = new Map(Object.entries(file.words));
    return (prompt) => {
      const ids = (prompt.toLowerCase().match(WORDS) ?? []).filter((word) => rows.has(word)).map((word) => rows.get(word));
      return { ids: ids.slice(0, text.max_tokens), cut: ids.length > text.max_tokens };
    };
  }
  const { Tokenizer } = await library("@huggingface/tokenizers");
  const tokenizer = new Tokenizer(file, {}), most = text.max_tokens;
  if (text.kind === "byte-pairs") {
    return (prompt) => {
      // JavaScript would lower a capital sigma at the end of a word to another letter than the tokenizer does
      const ids = tokenizer.encode(prompt.replaceAll("\u03a3", "\u03c3")).ids;
      return { ids: [text.start, ...ids.slice(0, most - 2), text.end], cut: ids.length > most - 2 };
    };
  }
  return (prompt) => {
    const { ids } = tokenizer.encode(text.lower_case ? prompt.toLowerCase() : prompt);
    const plain = tokenizer.encode("a", { add_special_tokens: false }).ids, special = tokenizer.encode("a").ids;
    const closing = special.length - special.indexOf(plain[0]) - plain.length; // special tokens at the end
    const cut = ids.length > most;
    return { ids: cut ? [...ids.slice(0, most - closing), ...ids.slice(ids.length - closing)] : ids, cut };
  };
}

// ---- the model ------------------------------------------------------------------------------------------------------

async function fetchJson(file) {
  const response = await fetch(file);
  if (!response.ok) throw new Error(`${file}: ${response.status}`);
  return response.json();
}

// Imports a package from node_modules beside the page, or else the same version from a CDN.
async function library(name) {
  const { dependencies } = await fetchJson("package.json");
  return import(`./node_modules/${name}/${FILES[name]}`).catch(() =>
    import(`${CDN}/${name}@${dependencies[name]}/${FILES[name]}`).catch(() => {
      throw new Error(`${name} is missing; go online, or type npm install in the folder of this page`);
    }),
  );
}

export class Model {
  static async open(onProgress = () => {}) {
    const model = new Model();
    model.manifest = await fetchJson("manifest.json");
    model.ort = await library("onnxruntime-web");
    model.ort.env.wasm.numThreads = 1; // more need headers that a plain file server does not send
    model.tokenize = await tokenizerOf(model.manifest.text);
    model.sessions = {};
    const graphs = Object.entries(model.manifest.graphs);
    for (const [name, graph] of graphs) {
      onProgress(`loading ${graph.file}, ${Object.keys(model.sessions).length + 1} of ${graphs.length}`);
      model.sessions[name] = await model.ort.InferenceSession.create(graph.file, { executionProviders: ["wasm"] });
    }
    return model;
  }

  tensor(type, values, shape) {
    const array = { int64: (x) => BigInt64Array.from(x, BigInt), bool: (x) => Uint8Array.from(x), float32: (x) => x }[type](values);
    return new this.ort.Tensor(type, array, shape);
  }

  // Returns the outputs of a graph by name. Inputs that no output depends on are not in the file.
  async run(name, inputs) {
    const session = this.sessions[name];
    return session.run(Object.fromEntries(session.inputNames.map((input) => [input, inputs[input]])));
  }

  // Returns the float32 pixels [3, H, W] of one image, about -1 to 1.
  async image(prompt, seed, k, onProgress = () => {}) {
    const { text, sampling } = this.manifest, ownSeed = imageSeed(seed, prompt, k);
    const { ids, cut } = this.tokenize(prompt), length = text.max_tokens;
    const padded = [...ids, ...Array(length - ids.length).fill(text.pad)];
    const mask = this.tensor("bool", padded.map((_, i) => i < Math.max(1, ids.length)), [1, length]);
    const features = { ...(await this.run("text", { ids: this.tensor("int64", padded, [1, length]), mask })), mask };
    let outputs;
    if (this.sessions.decoder) {
      const codes = this.tensor("int64", await this.codes(features, ownSeed, onProgress), [1, sampling.slots]);
      outputs = await this.run("decoder", { codes });
    } else {
      const noise = this.tensor("float32", normal(ownSeed, "sample/z", 0, sampling.noise), [1, sampling.noise]);
      outputs = await this.run("generator", { ...features, noise });
    }
    return { pixels: outputs.images.data, shape: outputs.images.dims.slice(1), seed: ownSeed, cut };
  }

  // Samples the codes of a prior, one group of slots after the other.
  async codes(features, seed, onProgress) {
    const plan = this.manifest.sampling, rows = plan.guidance.some((g) => g !== 1) ? 2 : 1;
    const repeat = ({ type, data, dims }) => {
      const all = new data.constructor(rows * data.length);
      for (let row = 0; row < rows; row++) all.set(data, row * data.length);
      return new this.ort.Tensor(type, all, [rows, ...dims.slice(1)]);
    };
    const ints = (values) => this.tensor("int64", Array(rows).fill(values).flat(), [rows, values.length]);
    const texts = Object.fromEntries(Object.entries(features).map(([name, tensor]) => [name, repeat(tensor)]));
    const isNull = this.tensor("bool", Array.from({ length: rows }, (_, row) => row === 1), [rows]);
    let { logits, ...state } = await this.run("prefill", { ...texts, null: isNull });
    const order = Array.from({ length: plan.slots }, (_, slot) => slot);
    if (plan.order !== "raster") {
      const ranks = uniform(seed, "sample/order", 0, plan.slots);
      order.sort((a, b) => ranks[a] - ranks[b]);
    }
    const codes = Array(plan.slots).fill(0), letPaint = painter();
    let previous = [], start = 0;
    for (const [group, size] of plan.groups.entries()) {
      const current = order.slice(start, start + size);
      if (!logits || start) {
        const queries = plan.queries ? { queries: ints(current) } : {};
        const inputs = { codes: ints(previous.map((slot) => codes[slot])), slots: ints(previous), ...state, ...queries };
        const outputs = await this.run("step", inputs);
        logits = outputs.logits;
        state = { ...state, keys: outputs.new_keys, values: outputs.new_values };
      }
      current.forEach((slot, i) => {
        const logitsOf = (row) => logits.data.subarray((row * size + i) * plan.codes, (row * size + i + 1) * plan.codes);
        codes[slot] = chosen(guided(logitsOf(0), logitsOf(rows - 1), plan.guidance[group]), seed, slot, plan);
      });
      [previous, start] = [current, start + size];
      onProgress(start / plan.slots);
      await letPaint();
    }
    return codes;
  }
}

const f32 = Math.fround;

// Returns null + g (caption - null), rounded to float32 after each operation.
function guided(caption_K, null_K, g) {
  return caption_K.map((value, k) => null_K[k] + f32(f32(g) * f32(value - null_K[k])));
}

// Returns the arg max of logits and Gumbel noise among the codes that top-k and top-p keep.
export function chosen(logits_K, seed, slot, { codes, temperature, top_k, top_p }) {
  const noise = temperature ? gumbel(seed, slot, codes) : null;
  let floor = -Infinity;
  if (top_k || (temperature && top_p < 1)) {
    const sorted = Float32Array.from(logits_K).sort().reverse().subarray(0, top_k || codes);
    floor = sorted[sorted.length - 1];
    if (temperature && top_p < 1) {
      const p = Float64Array.from(sorted, (x) => Math.exp((x - sorted[0]) / temperature));
      const mass = top_p * p.reduce((sum, x) => sum + x, 0);
      for (let k = 0, before = 0; k < p.length && before < mass; before += p[k++]) floor = sorted[k];
    }
  }
  let best = -1, most = -Infinity;
  logits_K.forEach((logit, k) => {
    const score = noise ? f32(logit + f32(f32(temperature) * noise[k])) : logit;
    if (logit >= floor && score > most) [best, most] = [k, score];
  });
  return best;
}

// Returns a function that lets the browser paint if it has not done so for FRAME_MS.
function painter() {
  let last = performance.now();
  return async () => {
    if (performance.now() - last < FRAME_MS) return;
    await new Promise((done) => setTimeout(done));
    last = performance.now();
  };
}

// ---- the page -------------------------------------------------------------------------------------------------------

function paint({ pixels, shape: [, height, width] }) {
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  const levels = new ImageData(width, height), area = height * width;
  for (let i = 0; i < area; i++) {
    for (let c = 0; c < 3; c++) levels.data[4 * i + c] = (pixels[c * area + i] + 1) * 127.5;
    levels.data[4 * i + 3] = 255;
  }
  canvas.getContext("2d").putImageData(levels, 0, 0);
  return canvas;
}

function figureOf(image, prompt) {
  const canvas = paint(image), figure = document.createElement("figure"), caption = document.createElement("figcaption");
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", prompt);
  const save = Object.assign(document.createElement("a"), {
    href: canvas.toDataURL(), download: `seed-${image.seed}.png`, textContent: "save",
  });
  caption.append(`seed ${image.seed} `, save);
  figure.append(canvas, caption);
  return figure;
}

function wholeNumber(field, most) {
  const text = field.value.trim();
  if (!/^\d{1,19}$/.test(text) || BigInt(text) > most) throw new Error(`${field.name} ${text || "(empty)"}: give a whole number of at most ${most}`);
  return BigInt(text);
}

async function sampleImages(model, form, images, say) {
  const prompt = cleanPrompt(form.prompt.value), seed = wholeNumber(form.seed, (1n << 63n) - 1n);
  const count = Number(wholeNumber(form.number, BigInt(MOST_IMAGES))), started = performance.now();
  images.replaceChildren();
  let cut = false;
  for (let k = 0; k < count; k++) {
    const onProgress = (share) => say(`image ${k + 1} of ${count}: ${Math.round(100 * share)} %`);
    onProgress(0);
    await new Promise((done) => setTimeout(done));
    const image = await model.image(prompt, seed, k, onProgress);
    images.append(figureOf(image, prompt));
    cut ||= image.cut;
  }
  const end = cut ? `; the prompt was cut to ${model.manifest.text.max_tokens} tokens` : "";
  say(`${count} ${count === 1 ? "image" : "images"} in ${((performance.now() - started) / 1000).toFixed(1)} s${end}`);
}

async function start() {
  const [form, images, message] = ["form", "images", "message"].map((id) => document.getElementById(id));
  const say = (text, wrong = false) => {
    message.textContent = text;
    message.classList.toggle("wrong", wrong);
  };
  form.dice.onclick = () => (form.seed.value = Math.floor(Math.random() * 2 ** 31));
  form.onsubmit = async (event) => {
    event.preventDefault();
    form.go.disabled = true;
    await sampleImages(await opened, form, images, say).catch((error) => say(error.message, true));
    form.go.disabled = false;
  };
  try {
    const model = await Model.open(say);
    say("ready");
    form.go.disabled = false;
    return model;
  } catch (error) {
    say(error.message, true);
    throw error;
  }
}

export const opened = start();
