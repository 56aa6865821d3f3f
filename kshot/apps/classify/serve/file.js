const choose = element.querySelector('input');
choose.addEventListener('change', () => {
  if (!choose.files.length) return;
  const reader = new FileReader();
  reader.onload = () => { props.value = JSON.stringify([reader.result]); trigger('change'); choose.value = ''; };
  reader.readAsDataURL(choose.files[0]);
});
