// Replays the frames of an answer: which position shows which text after any of them. No DOM.
//
// A recording is plain data, { events: [...] }, so that it can be stored and exported as it is.

export function newRecording() {
  return { events: [] };
}

export function record(recording, frame, milliseconds) {
  const { v, seq, ...event } = frame;
  recording.events.push({ ...event, at: Math.round(milliseconds) });
}

// The canvas after the events applied so far; `takeDirty` says what changed since it was asked.
// Of a text with holes, `within` is what it is made of from the first hole to the last.
export class CanvasState {
  #dirty = new Set();
  #isAllDirty = true;
  #within;

  constructor(within = []) {
    this.#within = within;
    this.clear();
  }

  clear() {
    Object.assign(this, { length: 0, blockLength: 0, block: 0, blockStart: 0, step: 0, steps: 0 });
    Object.assign(this, { masked: 0, settled: 0, isEnded: false, end: 0, firstMasked: 0 });
    this.cells = new Map();
    this.draft = new Map();
    this.given = null;
    this.#isAllDirty = true;
  }

  apply(event) {
    if (event.kind === "begin") this.#begin(event);
    if (event.kind === "frame" && event.step === 0 && this.#isBlank) this.#beginWith(event.set ?? []);
    if (event.block > this.block) this.#enterBlock(event.block);
    if (event.kind === "keyframe") this.#forget();
    for (const [position, text, confidence, kind] of event.set ?? []) {
      this.cells.set(position, { text, confidence, isEdit: kind === "edit" });
      this.#dirty.add(position);
      this.end = Math.max(this.end, position + 1);
    }
    if (event.set?.length) this.given ??= findGiven(this.#within, this.cells, this.end);
    for (const position of event.unset ?? []) {
      this.cells.delete(position);
      this.#dirty.add(position);
      this.firstMasked = Math.min(this.firstMasked, position);
    }
    this.step = event.step;
    this.steps = event.steps;
    this.masked = event.masked;
    if (event.settled !== undefined) this.settled = event.settled;
    if (event.kind === "end") this.#finish();
    while (this.cells.has(this.firstMasked)) this.firstMasked += 1;
    // A draft may have filled the blocks before the one that is begun with.
    if (event.step === 0) this.blockStart = this.firstMasked;
  }

  // Positions to draw again, or null for all of them.
  takeDirty() {
    const dirty = this.#isAllDirty ? null : [...this.#dirty];
    this.#dirty.clear();
    this.#isAllDirty = false;
    return dirty;
  }

  get text() {
    const positions = [...this.cells.keys()].sort((a, b) => a - b);
    return positions.map((position) => this.cells.get(position).text).join("");
  }

  get blockEnd() {
    return Math.min(this.length, this.blockStart + (this.blockLength || this.length));
  }

  #begin(event) {
    this.clear();
    this.length = event.length;
    this.blockLength = event.block_length;
  }

  get #isBlank() {
    return this.cells.size === 0 && this.draft.size === 0;
  }

  // What is set before the first step is a draft; words that differ from it later have changed.
  #beginWith(set) {
    this.draft = new Map(set.map(([position, text]) => [position, text]));
  }

  // Blocks of a block-causal model count from the prompt's start, so where one begins is seen
  // only when the one before it is full.
  #enterBlock(block) {
    this.block = block;
    this.blockStart = this.firstMasked;
  }

  #forget() {
    this.cells.clear();
    this.firstMasked = 0;
    this.end = 0;
    this.#isAllDirty = true;
  }

  #finish() {
    this.isEnded = true;
    this.#isAllDirty = true;
  }
}

// The positions of what is given between holes. Frames do not tell it from what is filled, but it
// is there at once, is certain, and comes where the hole before it ends: after its length, or where
// the text is found first if the hole was to find its length itself.
function findGiven(within, cells, length) {
  const given = new Set();
  let start = 0;
  let isFound = true;
  for (const part of within) {
    if (part.mask === "auto") isFound = false;
    else if (part.mask) start += part.mask;
    else {
      let end = endOf(part, start, cells);
      while (end === null && !isFound && start < length) end = endOf(part, ++start, cells);
      if (end === null) break;
      for (; start < end; start += 1) given.add(start);
      isFound = true;
    }
  }
  return given;
}

// Where a text ends that positions from `start` on spell; null if they do not.
function endOf(text, start, cells) {
  const isCertain = (position) => cells.get(position)?.confidence === 1;
  let end = start;
  let spelled = "";
  for (; spelled !== text && text.startsWith(spelled) && isCertain(end); end += 1) spelled += cells.get(end).text;
  if (spelled !== text) return null;
  // Of a character of several tokens the first one has the text.
  while (isCertain(end) && cells.get(end).text === "") end += 1;
  return end;
}

// An answer's frames in time: `seek` goes to any moment, forwards or backwards.
export class Timeline {
  #applied = 0;

  constructor(recording, within) {
    this.events = recording.events;
    this.state = new CanvasState(within);
    this.moments = [];
    this.events.forEach((event, index) => {
      if (event.kind === "begin" || event.set?.length || event.unset?.length) this.moments.push(index);
    });
  }

  get last() {
    return this.moments.length - 1;
  }

  seek(moment) {
    const target = this.moments[Math.max(0, Math.min(moment, this.last))] + 1;
    if (target < this.#applied) {
      this.state.clear();
      this.#applied = 0;
    }
    while (this.#applied < target) this.state.apply(this.events[this.#applied++]);
    return this.state;
  }
}
