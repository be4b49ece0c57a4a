// Keeps the keyboard where it was: what has a part of the form rendered anew lies in that part itself.
(() => {
  let id = '';
  document.addEventListener('htmx:beforeSwap', event => {
    const focused = document.activeElement;
    if (event.detail.target.contains(focused)) id = focused.id;
  });
  document.addEventListener('htmx:afterSettle', () => {
    const element = id && document.getElementById(id);
    id = '';
    // Unless somebody has gone on meanwhile
    if (element && document.activeElement === document.body) element.focus({ preventScroll: true });
  });
})();
