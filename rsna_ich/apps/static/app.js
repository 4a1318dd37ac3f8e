// The pages of the web application: uploads with their progress, the queue, and the viewer.
'use strict';
const all = (s, within = document) => [...within.querySelectorAll(s)];
const one = (s, within = document) => within.querySelector(s);

// Uploads -------------------------------------------------------------------

async function below(entry, path = '') { // the files of a folder that was dropped
  if (entry.isFile) return new Promise((done, fail) => entry.file(f => done([[f, path + f.name]]), fail));
  const reader = entry.createReader(), found = [];
  for (;;) {
    const some = await new Promise((done, fail) => reader.readEntries(done, fail));
    if (!some.length) return found;
    for (const e of some) found.push(...await below(e, path + entry.name + '/'));
  }
}

function send(form, files) {
  const say = one('#upload-words'), bar = one('#upload-bar'), data = new FormData(), ask = new XMLHttpRequest();
  if (!files.length) { say.textContent = 'No file was chosen.'; return; }
  for (const [file, name] of files) data.append('files', file, name);
  bar.hidden = false;
  ask.upload.onprogress = e => { if (e.lengthComputable) {
    bar.max = e.total; bar.value = e.loaded;
    say.textContent = `${(e.loaded/2**20).toFixed(1)} of ${(e.total/2**20).toFixed(1)} MB sent`;
  } };
  ask.onload = () => {
    bar.hidden = true;
    if (ask.status < 300) location.href = '/';
    else try { say.textContent = JSON.parse(ask.responseText).error; } catch { say.textContent = 'The upload was refused.'; }
  };
  ask.onerror = () => { bar.hidden = true; say.textContent = 'The upload broke off: it may be too large, or the application has been stopped.'; };
  ask.open('POST', form.action);
  ask.setRequestHeader('Accept', 'application/json');
  ask.send(data);
}

const form = one('#upload');
if (form) {
  const picked = () => all('input[type=file]', form).flatMap(i => [...i.files].map(f => [f, f.webkitRelativePath || f.name]));
  form.addEventListener('submit', e => { e.preventDefault(); send(form, picked()); });
  const drop = one('.drop');
  drop.addEventListener('dragover', e => { e.preventDefault(); drop.classList.add('over'); });
  drop.addEventListener('dragleave', () => drop.classList.remove('over'));
  drop.addEventListener('drop', async e => {
    e.preventDefault(); drop.classList.remove('over');
    const dropped = [...e.dataTransfer.items].filter(i => i.kind === 'file').map(i => [i.webkitGetAsEntry(), i.getAsFile()]); // a file that is on no disk has no entry
    send(form, (await Promise.all(dropped.map(([entry, file]) => entry ? below(entry) : [[file, file.name]]))).flat());
  });
}

// The queue -----------------------------------------------------------------

async function watch() {
  const open = all('[data-upload]');
  if (!open.length) return;
  for (const row of open) {
    const said = await fetch(`/upload/${row.dataset.upload}/state`).then(r => r.ok ? r.json() : null).catch(() => null);
    if (!said) continue;
    if (['answered', 'refused'].includes(said.state)) { location.reload(); return; }
    one('.state', row).textContent = said.words;
  }
  setTimeout(watch, 700);
}
watch();

// The viewer ----------------------------------------------------------------

class Viewer {
  constructor(root) {
    this.root = root; this.n = +root.dataset.n; this.k = +root.dataset.key; this.base = root.dataset.base;
    this.window = [40, 80]; this.opacity = .5; this.maskOpacity = 0;
    this.stage = one('.stage', root); this.image = one('img.slice', root); this.heat = one('img.heat', root); this.mask = one('img.mask', root);
    all('.opacity', root).forEach(o => o.value = 100*this.opacity); all('.mask-opacity', root).forEach(o => o.value = 100*this.maskOpacity); // a reload keeps what was set
    one('.slice-number', root).max = this.n;
    this.wire(); this.draw();
    this.begin().catch(e => this.fallback(e));
  }

  async begin() {
    if (new URLSearchParams(location.search).has('png')) throw new Error('asked for pictures');
    const canvas = one('canvas', this.root), probe = document.createElement('canvas').getContext('webgl2');
    if (!probe || !window.niivue) throw new Error('no WebGL2');
    const nv = new niivue.Niivue({dragAndDropEnabled: false, backColor: [0, 0, 0, 1], isColorbar: false, loadingText: '',
      isRadiologicalConvention: true, show3Dcrosshair: false, crosshairWidth: 0, logLevel: 'error', dragMode: niivue.DRAG_MODE.contrast,
      measureTextColor: [1, 1, 1, 1], measureTextHeight: .1});
    canvas.hidden = false; // NiiVue takes its size
    await nv.attachToCanvas(canvas);
    canvas.focus = () => this.stage.focus({preventScroll: true}); // NiiVue asks for the focus on each click; a page that scrolls under the mouse makes a distance wrong
    const [low, high] = this.limits();
    const volumes = [{url: `${this.base}/volume.nii.gz`, colormap: 'gray', cal_min: low, cal_max: high}];
    if (this.root.dataset.map === 'yes') volumes.push({url: `${this.base}/map.nii.gz`, colormap: 'hot', opacity: this.opacity, cal_min: 20, cal_max: 100});
    if (this.root.dataset.mask === 'yes') volumes.push({url: `${this.base}/mask.nii.gz`, opacity: this.maskOpacity});
    await nv.loadVolumes(volumes);
    this.colourKinds(nv);
    nv.setInterpolation(false);
    nv.setSliceType(nv.sliceTypeAxial);
    nv.resizeListener();
    this.image.hidden = true; this.heat.hidden = true; this.mask.hidden = true;
    nv.onLocationChange = () => this.follow();
    nv.onMeasurementCompleted = m => { one('.note', this.root).textContent = `The distance is ${m.distance.toFixed(1)} mm.`; };
    this.nv = nv; this.root.dataset.viewer = 'webgl';
    // NiiVue's own wheel and keys would scroll beside ours
    this.draw();
  }

  follow() { // a click in one of three planes leads to another slice
    if (one('[data-mode=planes][aria-pressed=true]', this.root)) this.go(Math.floor(this.n*this.nv.scene.crosshairPos[2]));
  }

  layer(name) { return this.nv ? this.nv.volumes.findIndex(v => v.url.endsWith(`/${name}.nii.gz`)) : -1; }

  colourKinds(nv) { // of the outlines, as the keys beside them are coloured
    const mask = nv.volumes.find(v => v.url.endsWith('/mask.nii.gz'));
    if (!mask) return;
    const R = [0], G = [0], B = [0], A = [0], I = [0], labels = ['none'];
    for (let k = 1; k < 6; k++) {
      const key = document.createElement('span'); key.className = `kind-${k}`; document.body.append(key);
      const [r, g, b] = getComputedStyle(key, '::before').backgroundColor.match(/\d+/g).map(Number); key.remove();
      R.push(r); G.push(g); B.push(b); A.push(255); I.push(k); labels.push(String(k));
    }
    mask.setColormapLabel({R, G, B, A, I, labels});
    nv.updateGLVolume();
  }

  fallback(e) {
    this.root.dataset.viewer = 'png';
    one('canvas', this.root).hidden = true; this.image.hidden = false;
    all('.webgl-only', this.root).forEach(o => o.hidden = true);
    one('.note', this.root).textContent = 'Pictures from the server: WebGL2 is not available, so there are no three planes and distances.';
    this.draw();
  }

  limits() { const [c, w] = this.window; return [c - w/2, c + w/2]; }

  go(k) { this.k = Math.max(0, Math.min(this.n - 1, k)); this.draw(); }

  set(centre, width) {
    this.window = [centre, Math.max(1, width)];
    if (this.nv) { const v = this.nv.volumes[0]; [v.cal_min, v.cal_max] = this.limits(); this.nv.updateGLVolume(); }
    this.draw();
  }

  draw() {
    const cells = all('.strip button', this.root), cell = cells[this.k];
    cells.forEach((o, i) => { o.setAttribute('aria-current', i === this.k); o.tabIndex = i === this.k ? 0 : -1; });
    one('.slice-number', this.root).value = this.k + 1;
    one('.slice-words', this.root).textContent = cell ? cell.getAttribute('aria-label') : '';
    one('.window-words', this.root).textContent = `window ${Math.round(this.window[0])} / ${Math.round(this.window[1])} HU`;
    this.root.dataset.slice = this.k; this.root.dataset.window = this.window.map(Math.round).join('/');
    if (this.nv) {
      this.nv.scene.crosshairPos = [this.nv.scene.crosshairPos[0], this.nv.scene.crosshairPos[1], (this.k + .5)/this.n];
      this.nv.drawScene();
    } else {
      const [c, w] = this.window.map(Math.round);
      this.image.src = `${this.base}/slice/${this.k}.png?centre=${c}&width=${w}`;
      const mapped = this.root.dataset.map === 'yes' && cell && cell.classList.contains('yes');
      this.heat.hidden = !mapped; if (mapped) this.heat.src = `${this.base}/heat/${this.k}.png`;
      this.heat.style.opacity = this.opacity;
      this.mask.hidden = this.root.dataset.mask !== 'yes' || !this.maskOpacity;
      if (!this.mask.hidden) this.mask.src = `${this.base}/mask/${this.k}.png`;
      this.mask.style.opacity = this.maskOpacity;
    }
  }

  wire() {
    const root = this.root, on = (s, event, f) => all(s, root).forEach(o => o.addEventListener(event, e => f(e, o)));
    on('.strip button', 'click', (e, o) => { this.go(+o.dataset.k); });
    on('.slice-number', 'input', (e, o) => this.go(+o.value - 1));
    on('[data-centre]', 'click', (e, o) => this.set(+o.dataset.centre, +o.dataset.width));
    on('.opacity', 'input', (e, o) => { this.opacity = +o.value/100; this.fade('map', this.opacity); });
    on('.mask-opacity', 'input', (e, o) => { this.maskOpacity = +o.value/100; this.fade('mask', this.maskOpacity); });
    on('[data-mode]', 'click', (e, o) => this.mode(o.dataset.mode, o));
    this.stage.addEventListener('wheel', e => { e.preventDefault(); e.stopPropagation(); this.go(this.k + Math.sign(e.deltaY)); }, {passive: false, capture: true});
    this.stage.addEventListener('keydown', e => this.key(e), true);
    one('.strip', root).addEventListener('keydown', e => { if (this.key(e)) { const o = one('.strip [aria-current=true]', root); if (o) o.focus(); } });
    this.drag();
  }

  fade(name, opacity) {
    const at = this.layer(name);
    if (at > 0) this.nv.setOpacity(at, opacity);
    this.draw();
  }

  key(e) {
    const step = {ArrowUp: 1, ArrowRight: 1, ArrowDown: -1, ArrowLeft: -1, PageUp: 5, PageDown: -5}[e.key];
    const presets = all('[data-centre]', this.root), preset = presets[+e.key - 1];
    if (step) this.go(this.k + step);
    else if (e.key === 'Home') this.go(0);
    else if (e.key === 'End') this.go(this.n - 1);
    else if (e.key === 'k') this.go(+this.root.dataset.key);
    else if (preset) preset.click();
    else return false;
    e.preventDefault(); e.stopPropagation();
    return true;
  }

  drag() { // of the window; while distances are measured or planes are shown the mouse is NiiVue's
    let from = null;
    const ours = () => !all('[data-mode][aria-pressed=true]', this.root).length;
    for (const event of ['mousedown', 'touchstart'])
      this.stage.addEventListener(event, e => { if (ours()) e.stopPropagation(); }, {capture: true, passive: true});
    this.stage.addEventListener('pointerdown', e => {
      if (!ours()) return;
      e.stopPropagation();
      from = [e.clientX, e.clientY, ...this.window];
    }, true);
    addEventListener('pointerup', () => { from = null; });
    addEventListener('pointermove', e => { if (from) this.set(from[2] - (e.clientY - from[1])/2, from[3] + (e.clientX - from[0])); });
  }

  mode(name, button) {
    const nv = this.nv;
    if (!nv) return;
    if (name === 'planes') {
      const three = button.getAttribute('aria-pressed') !== 'true';
      button.setAttribute('aria-pressed', three);
      nv.opts.crosshairWidth = three ? 1 : 0;
      nv.setSliceType(three ? nv.sliceTypeMultiplanar : nv.sliceTypeAxial);
    } else {
      const measure = button.getAttribute('aria-pressed') !== 'true';
      button.setAttribute('aria-pressed', measure);
      nv.opts.dragMode = measure ? niivue.DRAG_MODE.measurement : niivue.DRAG_MODE.contrast;
      nv.opts.dragModePrimary = measure ? niivue.DRAG_MODE.measurement : niivue.DRAG_MODE.crosshair;
      one('.note', this.root).textContent = measure ? 'Drag with the mouse to measure; the distance is in mm.' : '';
    }
    nv.drawScene();
  }
}
window.viewers = all('.viewer').map(o => new Viewer(o));
