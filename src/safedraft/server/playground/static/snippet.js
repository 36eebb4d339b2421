// A request as code that repeats it.

import { baseURL, hasKey } from "./api.js";

const EXTENSIONS = ["safedraft"]; // which OpenAI's client takes in extra_body

export function writeCurl(body) {
  const quoted = JSON.stringify(body, null, 2).replaceAll("'", "'\\''");
  const key = hasKey() ? ` \\\n  -H "Authorization: Bearer $SAFEDRAFT_API_KEY"` : "";
  return `curl ${baseURL()}/chat/completions -H 'Content-Type: application/json'${key} -d '${quoted}'\n`;
}

export function writePython(body) {
  const own = Object.entries(body).filter(([name]) => !EXTENSIONS.includes(name));
  const extra = Object.fromEntries(EXTENSIONS.map((name) => [name, body[name]]));
  const key = hasKey() ? 'os.environ["SAFEDRAFT_API_KEY"]' : '"none"';
  const values = [...own, ["extra_body", extra]].map(([name, value]) => `    ${name}=${writeValue(value, "    ")},`);
  return [
    ...(hasKey() ? ["import os", ""] : []),
    "import openai",
    "",
    `client = openai.OpenAI(base_url=${writeValue(baseURL())}, api_key=${key})`,
    "reply = client.chat.completions.create(",
    ...values,
    ")",
    "print(reply.choices[0].message.content)",
    'print(reply.choices[0].safedraft["verdict"])',
    "",
  ].join("\n");
}

// A JSON value as Python; a list has one item on each line.
function writeValue(value, indent = "") {
  if (value === null) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (Array.isArray(value)) {
    const items = value.map((item) => `${indent}    ${writeValue(item)},\n`);
    return `[\n${items.join("")}${indent}]`;
  }
  if (typeof value !== "object") return JSON.stringify(value);
  const items = Object.entries(value).map(([name, item]) => `${JSON.stringify(name)}: ${writeValue(item)}`);
  return `{${items.join(", ")}}`;
}
