/*
 * Follows the log of a run. htmx loads the lines; this script does what htmx cannot: stay at the end while the reader
 * follows, keep the position when earlier lines are inserted above, keep the page small, and report failed polls.
 */
(() => {
  'use strict';

  // Lines kept on the page while the reader follows; earlier ones are loaded again on request.
  const KEPT = 3000;
  // HTTP status that makes htmx stop polling: the run has finished.
  const ENDED = 286;
  // Distance to the end that still counts as at the end, in pixels.
  const NEAR = 24;

  const get = (id) => document.getElementById(`celery-log-${id}`);
  const isLines = (element) => element && element.id === 'celery-log-lines';

  let lastTop = 0;
  let heightBefore = null;

  const isAtEnd = (box) => box.scrollHeight - box.scrollTop - box.clientHeight < NEAR;

  const follows = () => Boolean(get('follow')?.checked);

  function goToEnd() {
    const box = get('box');
    box.scrollTop = box.scrollHeight;
    lastTop = box.scrollTop;
  }

  // The reader's scrolling decides whether they follow: scrolling up stops it, scrolling to the end resumes it.
  function onScroll(event) {
    const box = event.target;
    if (box.id !== 'celery-log-box') {
      return;
    }
    const follow = get('follow');
    if (follow) {
      if (box.scrollTop < lastTop && !isAtEnd(box)) {
        follow.checked = false;
      } else if (box.scrollTop > lastTop && isAtEnd(box)) {
        follow.checked = true;
      }
    }
    lastTop = box.scrollTop;
  }

  function removeOldest() {
    const lines = get('lines').getElementsByClassName('celery-line');
    const surplus = lines.length - KEPT;
    if (surplus <= 0) {
      return;
    }
    const first = lines[surplus];
    while (get('lines').firstElementChild !== first) {
      get('lines').firstElementChild.remove();
    }
    const earlier = get('earlier');
    earlier.querySelector('[name=before]').value = first.dataset.id;
    earlier.hidden = false;
  }

  // A new page starts at the end if the reader follows, or if the log is too long to be shown whole.
  function open() {
    const box = get('box');
    if (box && (follows() || box.hasAttribute('data-cut'))) {
      goToEnd();
    }
  }

  function notify(message) {
    const notice = get('notice');
    if (notice) {
      notice.textContent = message ? notice.dataset[message] : '';
      notice.hidden = !message;
    }
  }

  document.addEventListener('scroll', onScroll, { capture: true, passive: true });

  document.addEventListener('change', (event) => {
    if (event.target.id === 'celery-log-follow' && event.target.checked) {
      goToEnd();
    }
  });

  document.addEventListener('click', (event) => {
    const group = event.target.closest?.('.celery-log-group');
    if (group) {
      const input = get('grouping');
      input.value = group.dataset.celeryGroup;
      input.dispatchEvent(new Event('change', { bubbles: true }));
    }
  });

  document.addEventListener('htmx:beforeSwap', (event) => {
    if (isLines(event.detail.target) && event.detail.requestConfig.elt.closest('#celery-log-earlier')) {
      heightBefore = get('box').scrollHeight;
    }
  });

  // Fires once per request, after the swap; `htmx:afterSwap` fires once per line.
  document.addEventListener('htmx:afterOnLoad', (event) => {
    const { target, xhr } = event.detail;
    if (xhr.status >= 400) {
      return;
    }
    if (isLines(target) && heightBefore !== null) {
      const box = get('box');
      box.scrollTop += box.scrollHeight - heightBefore;
      lastTop = box.scrollTop;
      heightBefore = null;
    } else if (isLines(target)) {
      if (follows()) {
        removeOldest();
        goToEnd();
      }
      notify('');
      if (xhr.status === ENDED) {
        document.querySelector('.celery-log-follow')?.setAttribute('hidden', '');
      }
    } else if (target && target.id === 'celery-log-view') {
      open();
    }
  });

  document.addEventListener('htmx:sendError', (event) => {
    if (event.detail.elt.id === 'celery-log-poll') {
      notify('lost');
    }
  });

  document.addEventListener('htmx:responseError', (event) => {
    if (event.detail.elt.id === 'celery-log-poll') {
      const isGone = [403, 404].includes(event.detail.xhr.status);
      notify(isGone ? 'gone' : 'lost');
      if (isGone) {
        get('poll').remove();
      }
    }
  });

  open();
})();
