// Restores the keyboard focus: the field that triggers a new rendering of a part of the form lies in that part itself.
(() => {
  let id = '';

  const focus = id => {
    const element = document.getElementById(id);
    // Unless the user has moved on meanwhile
    if (!element || document.activeElement !== document.body) return;
    const list = document.getElementById(id.replace(/-ts-control$/, '')).tomselect;
    if (!list) return element.focus();
    // NetBox's lists load and open when they receive the focus: not wanted by a user who has just made a choice
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
    // NetBox creates its lists in another handler of this event
    setTimeout(focus, 0, id);
    id = '';
  });
})();
