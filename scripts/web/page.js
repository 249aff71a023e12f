// Controls and text of the page. The student runs in worker.js.
const find = (id) => document.getElementById(id);
const [about, form, go, rate] = ["about", "form", "go", "rate"].map(find);
const WHY = { end: "ended the text", length: "reached its length", stopped: "was stopped" };

const worker = new Worker("/worker.js", { type: "module" });
let isBusy = false;

function setBusy(value) {
  isBusy = value;
  go.textContent = value ? "Stop" : "Continue";
}

worker.onmessage = ({ data }) => {
  if (data.type === "ready") {
    go.disabled = false;
    document.body.dataset.state = "ready";
  } else if (data.type === "text") {
    find("completion").textContent = data.text;
    rate.textContent = `${data.numTokens} tokens, ${(data.numTokens / data.seconds).toFixed(0)} a second`;
  } else if (data.type === "done") {
    setBusy(false);
    rate.textContent += ` · ${WHY[data.reason]}`;
    document.body.dataset.state = "done";
  } else {
    setBusy(false);
    about.textContent = data.message;
    about.classList.add("failed");
    document.body.dataset.state = "failed";
  }
};
worker.onerror = (event) => worker.onmessage({ data: { type: "failed", message: event.message || "worker.js failed" } });

for (const name of ["temperature", "length"]) {
  find(name).oninput = () => (find(`${name}-value`).textContent = find(name).value);
}

form.onsubmit = (event) => {
  event.preventDefault();
  if (isBusy) {
    worker.postMessage({ type: "stop" });
    return;
  }
  const prompt = find("prompt").value;
  find("given").textContent = prompt;
  find("completion").textContent = rate.textContent = "";
  document.body.dataset.state = "busy";
  setBusy(true);
  const [temperature, maxNewTokens] = ["temperature", "length"].map((name) => Number(find(name).value));
  worker.postMessage({ type: "continue", prompt, temperature, maxNewTokens });
};

find("prompt").onkeydown = (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
};

const student = await (await fetch("/student.json")).json();
const precision = { q8: "8-bit weights", fp32: "32-bit weights" }[student.dtype];
about.textContent = `${student.name}: ${(student.bytes / 1e6).toFixed(1)} MB, ${precision}, reads ${student.context_length} tokens`;
find("length").max = Math.min(256, student.context_length);
worker.postMessage({ type: "load", student });
