// Requests to the server: the only file that knows its addresses.

// One client to the server's queue is one tab.
let client = null;
try { client = sessionStorage.getItem("client"); } catch { /* of a browser that keeps nothing */ }
if (!client) client = [...crypto.getRandomValues(new Uint8Array(12))].map(byte => byte.toString(16).padStart(2, "0")).join("");
try { sessionStorage.setItem("client", client); } catch { /* likewise */ }

export class Refusal extends Error {
  // wait_s: after which to come again; null where that is of no use
  constructor(message, wait_s = null) { super(message); this.wait_s = wait_s; }
}

// Of the way there, and not of what was asked.
export class Lost extends Refusal {}

export async function models() {
  return (await answered(await reached("models"))).json();
}

// The events of a request, as [name, values]. Aborting the signal hangs up, and the server stops drawing.
export async function* drawn(ask, signal) {
  const headers = { "content-type": "application/json", accept: "text/event-stream", "x-client": client };
  const answer = await answered(await reached("generate", { method: "POST", headers, body: JSON.stringify(ask), signal }));
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "", ended = false;
  while (!ended) {
    const { value, done } = await reader.read().catch(error => { throw signal.aborted ? error : new Lost("The connection was lost."); });
    if (done) break;
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const event = /^event: (.*)$/m.exec(block), data = /^data: (.*)$/m.exec(block);
      if (!event || !data) continue;
      yield [event[1], JSON.parse(data[1])];
      ended ||= event[1] === "done" || event[1] === "error";
    }
  }
  if (!ended) throw new Lost("The connection was lost.");
}

// Drawings as one file: "grid" or "zip".
export async function bundle(as, blobs) {
  const drawings = await Promise.all(blobs.map(base64));
  const headers = { "content-type": "application/json" };
  return (await answered(await reached("bundle", { method: "POST", headers, body: JSON.stringify({ as, drawings }) }))).blob();
}

export async function base64(blob) {
  const url = await new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new Refusal("The file cannot be read."));
    reader.readAsDataURL(blob);
  });
  return url.slice(url.indexOf(",") + 1);
}

async function reached(address, request = {}) {
  try { return await fetch(address, request); }
  catch (error) { throw request.signal?.aborted ? error : new Lost("The server is not there."); }
}

async function answered(answer) {
  if (answer.ok) return answer;
  let message = `The server answers ${answer.status}.`;
  try { message = (await answer.json()).error; } catch { /* of a proxy, perhaps */ }
  throw new Refusal(message, answer.status === 503 ? Number(answer.headers.get("retry-after")) || null : null);
}
