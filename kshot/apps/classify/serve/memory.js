// What the tab remembers of its visit, and what keeps it from being lost by an accident.
let saved = 0;
function held() {
  try { return JSON.parse(props.value || '{}'); } catch { return {}; }
}
window.addEventListener('beforeunload', event => {
  const unsaved = held().unsaved;
  if (unsaved && unsaved !== saved) { event.preventDefault(); event.returnValue = ''; }
});
document.addEventListener('click', event => {
  const link = event.target.closest && event.target.closest('#keep a[download]');
  if (link) saved = Number(link.dataset.changes);
});
// A file that is dropped beside a pad would take the place of the page.
function beside(event) {
  const types = [...(event.dataTransfer ? event.dataTransfer.types : [])], files = types.includes('Files');
  const words = event.target.closest && event.target.closest('input, textarea');
  if (event.defaultPrevented || !(files || types.includes('text/uri-list')) || (words && !files)) return;
  event.preventDefault();
  if (event.type === 'drop') {
    for (const told of document.querySelectorAll('.pad .told')) told.textContent = 'Drop images here, on the white field.';
  }
}
for (const name of ['dragover', 'drop']) window.addEventListener(name, beside);
