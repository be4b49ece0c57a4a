// Shows times in the browser's time zone: NetBox knows only its own.
(() => {
  const zone = Intl.DateTimeFormat().resolvedOptions().timeZone;
  const language = document.documentElement.lang || undefined;
  const weekday = new Intl.DateTimeFormat(language, { weekday: 'short' });
  // The Swedish locale formats times as NetBox does: 2026-11-21 02:30:00
  const time = new Intl.DateTimeFormat('sv-SE', { dateStyle: 'short', timeStyle: 'medium' });

  const show = root => {
    for (const element of root.querySelectorAll('[data-celery-time]')) {
      const moment = new Date(element.dateTime);
      element.textContent = `${weekday.format(moment)} ${time.format(moment)}`;
    }
    for (const element of root.querySelectorAll('[data-celery-zone]')) element.textContent = zone;
  };

  if (!zone) return;
  show(document);
  document.addEventListener('htmx:afterSwap', event => show(event.target));
})();
