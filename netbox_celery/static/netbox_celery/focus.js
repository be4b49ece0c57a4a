// Keeps the keyboard where it was: what has a part of the form rendered anew lies in that part itself.
(() => {
  let id = '';

  const focus = id => {
    const element = document.getElementById(id);
    // Unless somebody has gone on meanwhile
    if (!element || document.activeElement !== document.body) return;
    const list = document.getElementById(id.replace(/-ts-control$/, '')).tomselect;
    if (!list) return element.focus();
    // NetBox's lists load and open as they get the focus: that is for who comes, not for who has just chosen
    const { openOnFocus, preload } = list.settings;
    Object.assign(list.settings, { openOnFocus: false, preload: false });
    list.focus();
    setTimeout(() => Object.assign(list.settings, { openOnFocus, preload }));
  };

  document.addEventListener('htmx:beforeSwap', event => {
    const focused = document.activeElement;
    if (event.detail.target.contains(focused)) id = focused.id;
  });
  document.addEventListener('htmx:afterSettle', () => {
    if (!id) return;
    // NetBox makes its lists in a handler of this very event
    setTimeout(focus, 0, id);
    id = '';
  });
})();
