(() => {
  const svg = document.getElementById('timeline'), out = document.getElementById('readout'), cursor = document.getElementById('cursor');
  const seconds = JSON.parse(document.getElementById('seconds').textContent);
  if (!seconds.length) return;
  const left = +svg.dataset.left, right = +svg.dataset.right, ms = +svg.dataset.ms, width = svg.viewBox.baseVal.width;
  let at = 0;
  const show = (index) => {
    at = Math.max(0, Math.min(seconds.length - 1, index));
    const [t, sent, rows, p50, p99, lag, alive, rss, cpu] = seconds[at];
    const x = left + (width - left - right) * t / ms, text = (v, unit) => v === null ? '–' : v.toLocaleString('en') + unit;
    cursor.setAttribute('x1', x); cursor.setAttribute('x2', x);
    out.textContent = `${Math.floor(t / 60000)}:${String(Math.floor(t / 1000) % 60).padStart(2, '0')}  sent ${text(sent, '/s')}, rows ${text(rows, '/s')}, p50 ${text(p50, ' ms')}, p99 ${text(p99, ' ms')}, lag ${text(lag, '')}, workers ${alive}, ${text(rss, ' MiB')}, CPU ${text(cpu, ' %')}`;
  };
  svg.addEventListener('mousemove', (event) => {
    const box = svg.getBoundingClientRect(), t = ((event.clientX - box.left) * width / box.width - left) / (width - left - right) * ms;
    let near = 0;
    seconds.forEach((second, index) => { if (Math.abs(second[0] - t) < Math.abs(seconds[near][0] - t)) near = index; });
    show(near);
  });
  svg.addEventListener('keydown', (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1, PageDown: 10, PageUp: -10, Home: -1e9, End: 1e9 }[event.key];
    if (step) { show(at + step); event.preventDefault(); }
  });
})();
