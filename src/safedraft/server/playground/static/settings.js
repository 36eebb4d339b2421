// Sampling, the system prompt, and the constants of the method with a mark of what was changed.

import { Problem } from "./api.js";
import { create, find } from "./dom.js";

const USUAL_TOKENS = 256;
const SAME = "as initial_scheme"; // what a null of prefill_scheme means

export function readSampling() {
  const temperature = readNumber(find("temperature"), "Temperature");
  const sampling = { max_tokens: readNumber(find("max-tokens"), "Most new tokens") };
  if (!temperature) return sampling;
  const drawn = crypto.getRandomValues(new Uint32Array(1))[0];
  const seed = find("seed").value.trim() ? readNumber(find("seed"), "Seed") : drawn;
  return { ...sampling, temperature, seed };
}

export function showLimits({ max_new_tokens, max_temperature }) {
  find("max-tokens").max = max_new_tokens;
  find("max-tokens").value = Math.min(USUAL_TOKENS, max_new_tokens);
  find("temperature").max = max_temperature;
}

// The controls of the constants that a JSON schema describes.
export class Constants {
  constructor({ config, config_schema }) {
    this.own = config;
    this.rows = Object.entries(config_schema.properties).map(([name, property]) => this.makeRow(name, property, config_schema.$defs));
    find("constant-fields").replaceChildren(...this.rows.map((row) => row.element));
    find("reset").addEventListener("click", () => this.reset(this.rows));
    this.mark();
  }

  // The constants that differ from the pair's own.
  read() {
    const changed = this.rows.filter((row) => this.isChanged(row));
    return Object.fromEntries(changed.map((row) => [row.name, row.read()]));
  }

  reset(rows) {
    for (const row of rows) row.input.value = row.initial;
    this.mark();
  }

  isChanged = (row) => row.input.value.trim() !== row.initial;

  mark() {
    const changed = this.rows.filter((row) => this.isChanged(row));
    for (const row of this.rows) {
      row.element.classList.toggle("changed", changed.includes(row));
      row.note.hidden = !changed.includes(row);
    }
    find("reset").disabled = !changed.length;
    find("constants-mark").textContent = changed.length ? `${changed.length} changed` : "";
  }

  makeRow(name, property, definitions) {
    const id = `constant-${name}`;
    const hint = create("p", { class: "hint", id: `${id}-hint` }, (property.description ?? "").replace(/\s+/g, " "));
    const options = listOptions(property, definitions);
    const described = { id, "aria-describedby": hint.id };
    const { minimum: min = "", maximum: max = "", type } = property;
    const input = options
      ? create("select", described, ...options.map((option) => create("option", {}, option)))
      : type === "array"
        ? create("input", { ...described, type: "text", placeholder: "none" })
        : create("input", { ...described, type: "number", min, max, step: type === "integer" ? 1 : 0.05 });
    const own = this.own[name] ?? SAME;
    const initial = input.value = type === "array" ? own.join("-") : String(own);
    const undo = create("button", { type: "button", "aria-label": `Reset ${name}` }, "Reset");
    const note = create("p", { class: "note" }, `changed from ${initial || "none"} `, undo);
    const label = create("label", { for: id }, create("code", {}, name));
    const element = create("div", { class: "field" }, label, input, note, hint);
    const row = { name, input, note, element, initial };
    row.read = options
      ? () => this.readOption(input.value)
      : () => (type === "array" ? input.value.trim() : readNumber(input, name));
    input.addEventListener("input", () => this.mark());
    undo.addEventListener("click", () => (this.reset([row]), input.focus()));
    return row;
  }

  // The API takes a null for a constant that is left out: what prefill_scheme then means is sent.
  readOption(value) {
    return value === SAME ? this.rows.find((row) => row.name === "initial_scheme").input.value : value;
  }
}

function listOptions(property, definitions) {
  const kinds = property.anyOf ?? [property];
  const named = kinds.find((kind) => kind.$ref);
  if (!named) return null;
  const { enum: values } = definitions[named.$ref.split("/").at(-1)];
  return kinds.some((kind) => kind.type === "null") ? [SAME, ...values] : values;
}

function readNumber(input, name) {
  const value = input.value.trim();
  if (value === "" || Number.isNaN(Number(value))) throw new Problem(`${name}: give a number.`);
  return Number(value);
}
