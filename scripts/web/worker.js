// Runs the student in a worker thread, so that the page stays responsive.
// In: {type: "load", student}, {type: "continue", prompt, temperature, maxNewTokens}, {type: "stop"}.
// Out: {type: "ready"}, {type: "text", text, numTokens, seconds}, {type: "done", reason}, {type: "failed", message}.
import { AutoModelForCausalLM, AutoTokenizer, Tensor, env } from "/vendor/transformers.js";

env.allowRemoteModels = false;
env.allowLocalModels = true;
env.localModelPath = "/";
env.useBrowserCache = false;
env.useWasmCache = false;
env.backends.onnx.wasm.wasmPaths = { mjs: "/vendor/ort.mjs", wasm: "/vendor/ort.wasm" };
env.backends.onnx.wasm.numThreads = self.crossOriginIsolated ? Math.min(4, navigator.hardwareConcurrency || 1) : 1;

let student, tokenizer, model;
let isStopped = false;

async function load(described) {
  student = described;
  tokenizer = await AutoTokenizer.from_pretrained("student");
  model = await AutoModelForCausalLM.from_pretrained("student", { dtype: student.dtype, device: "wasm" });
  postMessage({ type: "ready" });
}

async function complete({ prompt, temperature, maxNewTokens }) {
  const ends = student.end_ids;
  const promptIds = [...student.beginning_ids, ...tokenizer.encode(prompt, { add_special_tokens: false })];
  if (promptIds.length === 0) promptIds.push(ends[0] ?? 0);
  const room = student.context_length - promptIds.length;
  if (room < 1) throw new Error(`the text has ${promptIds.length} tokens, this student reads ${student.context_length}`);

  isStopped = false;
  const ids = [];
  const started = performance.now();
  let inputIds = int64(promptIds);
  let pastKeyValues = null;
  let reason = "length";
  while (ids.length < Math.min(maxNewTokens, room)) {
    const step = await model.generate({
      input_ids: inputIds,
      attention_mask: int64(new Array(inputIds.dims[1]).fill(1)),
      past_key_values: pastKeyValues,
      max_new_tokens: 1,
      do_sample: temperature > 0,
      temperature: temperature || 1,
      top_k: 0,
      eos_token_id: null,
      return_dict_in_generate: true,
    });
    inputIds = step.sequences;
    pastKeyValues = step.past_key_values;
    const id = Number(inputIds.data.at(-1));
    if (ends.includes(id)) {
      reason = "end";
      break;
    }
    ids.push(id);
    const text = completionText(promptIds, ids);
    postMessage({ type: "text", text, numTokens: ids.length, seconds: (performance.now() - started) / 1000 });
    await messages();
    if (isStopped) {
      reason = "stopped";
      break;
    }
  }
  postMessage({ type: "done", reason });
}

// What decoding the whole adds to the decoded prompt (storage/text/completions.py).
function completionText(promptIds, ids) {
  const [before, whole] = [promptIds, [...promptIds, ...ids]].map(decoded);
  let numCommon = 0;
  while (numCommon < before.length && before[numCommon] === whole[numCommon]) numCommon += 1;
  return whole.slice(numCommon);
}

function decoded(ids) {
  return ids.length === 0 ? "" : tokenizer.decode(ids, { skip_special_tokens: true, clean_up_tokenization_spaces: false });
}

function int64(ids) {
  return new Tensor("int64", BigInt64Array.from(ids, BigInt), [1, ids.length]);
}

// Lets waiting messages, such as "stop", be handled. A timer of 0 would take 4 ms each time.
function messages() {
  return new Promise((resolve) => {
    const { port1, port2 } = new MessageChannel();
    port1.onmessage = () => {
      port1.close();
      resolve();
    };
    port2.postMessage(null);
  });
}

self.onmessage = async ({ data }) => {
  try {
    if (data.type === "load") await load(data.student);
    else if (data.type === "stop") isStopped = true;
    else await complete(data);
  } catch (error) {
    postMessage({ type: "failed", message: String(error?.message ?? error) });
  }
};
