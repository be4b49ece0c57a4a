/*
 * The log of a run, followed. htmx brings the lines; what is left to do here is what htmx cannot: stay at the end while
 * the reader follows, stay in place when earlier lines come in above, keep the page small, and say when a poll fails.
 */
(() => {
  'use strict';

  // Lines that stay on the page of a reader who follows; those before are loaded again on request.
  const KEPT = 3000;
  // With this status of an answer htmx stops to poll: the run has ended.
  const ENDED = 286;
  // Closer to the end than this is at the end, in pixels.
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

  // The reader's own scrolling says whether they follow: up means no, down to the end means yes.
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

  // A page that opens shows the end to who follows, and of what is too long to be shown whole.
  function open() {
    const box = get('box');
    if (box && (follows() || box.hasAttribute('data-cut'))) {
      goToEnd();
    }
  }

  function tell(message) {
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

  // Once a request, and after its swap; `htmx:afterSwap` comes once a line.
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
      tell('');
      if (xhr.status === ENDED) {
        document.querySelector('.celery-log-follow')?.setAttribute('hidden', '');
      }
    } else if (target && target.id === 'celery-log-view') {
      open();
    }
  });

  document.addEventListener('htmx:sendError', (event) => {
    if (event.detail.elt.id === 'celery-log-poll') {
      tell('lost');
    }
  });

  document.addEventListener('htmx:responseError', (event) => {
    if (event.detail.elt.id === 'celery-log-poll') {
      const isGone = [403, 404].includes(event.detail.xhr.status);
      tell(isGone ? 'gone' : 'lost');
      if (isGone) {
        get('poll').remove();
      }
    }
  });

  open();
})();
