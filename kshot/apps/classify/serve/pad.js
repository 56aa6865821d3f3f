const MAX_IMAGES = 50, SIDE = 512;
const pad = element.querySelector('.pad'), canvas = element.querySelector('canvas');
const files = element.querySelector('.files'), told = element.querySelector('.told');
const choose = element.querySelector('input'), pen = canvas.getContext('2d');
let drawn = false, chosen = [], last = null, sent = '', cleared = 0, key = {x: 140, y: 140, down: false};

function blank() {
  pen.fillStyle = '#fff'; pen.fillRect(0, 0, canvas.width, canvas.height);
  pen.strokeStyle = '#000'; pen.lineWidth = 14; pen.lineCap = 'round'; pen.lineJoin = 'round';
  drawn = false; chosen = []; last = null; cleared += 1; files.replaceChildren(); told.textContent = '';
}
function publish() {
  const all = drawn ? [canvas.toDataURL('image/png'), ...chosen] : chosen;
  sent = all.length ? JSON.stringify(all) : '';
  props.value = sent;
  trigger('change');
}
function at(event) {
  const box = canvas.getBoundingClientRect();
  return {x: (event.clientX - box.left) * canvas.width / box.width, y: (event.clientY - box.top) * canvas.height / box.height};
}
function stroke(from, to) {
  pen.beginPath(); pen.moveTo(from.x, from.y); pen.lineTo(to.x, to.y); pen.stroke(); drawn = true;
}
canvas.addEventListener('pointerdown', event => {
  last = at(event); stroke(last, last); canvas.setPointerCapture(event.pointerId); event.preventDefault(); canvas.focus();
});
canvas.addEventListener('pointermove', event => {
  if (!last) return;
  const next = at(event); stroke(last, next); last = next;
});
for (const name of ['pointerup', 'pointercancel']) canvas.addEventListener(name, () => {
  if (last) { last = null; publish(); }
});
canvas.addEventListener('keydown', event => {
  const step = {ArrowLeft: [-8, 0], ArrowRight: [8, 0], ArrowUp: [0, -8], ArrowDown: [0, 8]}[event.key];
  if (event.key === ' ') {
    key.down = !key.down;
    if (key.down) stroke(key, key); else publish();
  } else if (step) {
    const next = {x: Math.min(272, Math.max(8, key.x + step[0])), y: Math.min(272, Math.max(8, key.y + step[1]))};
    if (key.down) stroke(key, next);
    key = {...next, down: key.down};
  } else return;
  event.preventDefault();
});
async function small(file) {
  const image = await createImageBitmap(file);
  const scale = Math.min(1, SIDE / Math.min(image.width, image.height));
  const page = document.createElement('canvas');
  page.width = Math.max(1, Math.round(image.width * scale)); page.height = Math.max(1, Math.round(image.height * scale));
  const brush = page.getContext('2d');
  brush.fillStyle = '#fff'; brush.fillRect(0, 0, page.width, page.height);
  brush.drawImage(image, 0, 0, page.width, page.height);
  return page.toDataURL(file.type === 'image/png' ? 'image/png' : 'image/jpeg', 0.92);
}
async function take(list) {
  const bad = [], before = cleared;
  if (!list.length) bad.push('Only image files can be dropped here: save the image first');
  for (const [k, file] of list.entries()) {
    if (chosen.length >= MAX_IMAGES) { bad.push(`only ${MAX_IMAGES} images at once: ${list.length - k} were skipped`); break; }
    try {
      const url = await small(file), shown = document.createElement('img');
      if (cleared !== before) {  // what comes late must not get into the next class
        told.textContent = `${list.length - k} images were still loading and were skipped: add them again`;
        return;
      }
      if (chosen.length >= MAX_IMAGES) { bad.push(`only ${MAX_IMAGES} images at once: ${list.length - k} were skipped`); break; }
      chosen.push(url); shown.src = url; shown.alt = file.name || 'image'; files.append(shown);
    } catch { bad.push(`${file.name || 'what was given'} can't be read as an image`); }
  }
  told.textContent = bad.join('; ');
  if (chosen.length) publish();
}
choose.addEventListener('change', () => { take([...choose.files]); choose.value = ''; });
element.querySelector('.choose').addEventListener('keydown', event => {
  if (event.key === 'Enter' || event.key === ' ') { choose.click(); event.preventDefault(); }
});
element.querySelector('.clear').addEventListener('click', () => { blank(); publish(); });
pad.addEventListener('dragover', event => { event.preventDefault(); pad.classList.add('over'); });
pad.addEventListener('dragleave', () => pad.classList.remove('over'));
pad.addEventListener('drop', event => {
  event.preventDefault(); pad.classList.remove('over'); take([...event.dataTransfer.files]);
});
pad.addEventListener('paste', event => { if (event.clipboardData.files.length) take([...event.clipboardData.files]); });
watch('value', () => { if (!props.value && sent) { sent = ''; blank(); } });
blank();
