// Each answer is corrected by itself: a button says which one it belongs to.
element.addEventListener('click', event => {
  const button = event.target.closest('button[data-card]');
  if (!button) return;
  const other = button.closest('.other');
  trigger('click', {
    card: button.dataset.card, undo: button.dataset.undo === '1',
    label: other ? other.querySelector('input').value : button.dataset.label || '',
  });
});
element.addEventListener('keydown', event => {
  const other = event.key === 'Enter' && event.target.closest('.other');
  if (other) { other.querySelector('button').click(); event.preventDefault(); }
});
