// Shows class and scores of the pixel under the pointer; result.py writes the data.
let data = null;
watch('value', () => { data = null; });

function read() {
  const text = element.querySelector('[data-scores]')?.dataset.scores;
  if (!text) return null;
  const read = JSON.parse(text);
  for (const key of ['labels', 'top', 'scores', 'trusty']) {
    if (read[key]) read[key] = Uint8Array.from(atob(read[key]), (c) => c.charCodeAt(0));
  }
  return read;
}

function line(parent, text, kind) {
  const node = document.createElement('div');
  node.textContent = text;
  node.className = kind;
  parent.append(node);
}

function fill(tip, cell) {
  const cells = data.width * data.height;
  tip.replaceChildren();
  line(tip, data.names[data.labels[cell]] ?? 'other', 'winner');
  for (let at = cell; at < data.top.length; at += cells) {
    const context = data.top[at] < data.classes ? '' : ' (context)';
    const score = (data.scores[at] / 100).toFixed(2);
    line(tip, `${score}  ${data.names[data.top[at]]}${context}`, 'score');
  }
  if (data.trusty) line(tip, `P(seen class): ${(data.trusty[cell] / 100).toFixed(2)}`, 'trusty');
}

function show(event) {
  const tip = element.querySelector('.tip');
  if (!tip) return;
  tip.hidden = !event.target.matches('.pictures img');
  if (tip.hidden) return;
  data ??= read();
  const box = event.target.getBoundingClientRect();
  const x = Math.floor((event.clientX - box.left) / box.width * data.width);
  const y = Math.floor((event.clientY - box.top) / box.height * data.height);
  const column = Math.min(Math.max(x, 0), data.width - 1);
  fill(tip, Math.min(Math.max(y, 0), data.height - 1) * data.width + column);
  const frame = element.getBoundingClientRect();
  const left = event.clientX - frame.left + 14;
  const room = frame.width - tip.offsetWidth;
  tip.style.left = `${Math.max(0, left > room ? left - tip.offsetWidth - 28 : left)}px`;
  tip.style.top = `${event.clientY - frame.top + 14}px`;
}

for (const kind of ['pointermove', 'pointerdown', 'pointerleave']) {
  element.addEventListener(kind, show);
}
