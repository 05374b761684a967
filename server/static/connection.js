// Notices when the server is gone and when it is back, and asks for a key when one is wanted.
import { ApiError, Unreachable, hasKey, readReadiness, setKey } from "./api.js";
import { el } from "./dom.js";

const RETRY_MS = 1500;
const WATCH_MS = 15000;

export class Connection {
  #isLost = false;
  #retry = 0;
  #asking = null;

  // `onBack` is called when a lost server answers again.
  constructor(notice, dialog, onBack) {
    this.notice = notice;
    this.dialog = dialog;
    this.onBack = onBack;
    dialog.querySelector("#key-later").addEventListener("click", () => dialog.close(""));
    setInterval(() => document.hidden || this.#isLost || this.check(), WATCH_MS);
  }

  async check() {
    try {
      await readReadiness();
      if (this.#isLost) this.#found();
    } catch (error) {
      this.#lose(error);
    }
  }

  // Say that the server is gone or takes no requests, and look for it until it is back.
  report(error) {
    if (error instanceof Unreachable || error.status === 503) this.#lose(error);
  }

  #lose(error) {
    const text = error instanceof ApiError
      ? `The server is there but takes no requests (${error.message}).`
      : "The server does not answer. What is on the page stays; looking for it…";
    if (!this.#isLost || this.notice.textContent !== text) {
      this.notice.replaceChildren(el("span", { class: "dot" }), text);
      this.notice.className = "lost";
    }
    this.#isLost = true;
    clearTimeout(this.#retry);
    this.#retry = setTimeout(() => this.check(), RETRY_MS);
  }

  #found() {
    this.#isLost = false;
    this.notice.className = "found";
    this.notice.replaceChildren(el("span", { class: "dot" }), "The server is back.");
    setTimeout(() => this.#isLost || this.notice.replaceChildren(), 4000);
    this.onBack();
  }

  // Resolves to whether a key was given; several requests that want one ask once.
  askForKey() {
    this.#asking ??= this.#ask().finally(() => { this.#asking = null; });
    return this.#asking;
  }

  #ask() {
    const reason = this.dialog.querySelector("#key-reason");
    const value = this.dialog.querySelector("#key-value");
    reason.textContent = hasKey() ? "The key that was given was refused." : "";
    value.value = "";
    this.dialog.returnValue = "";
    this.dialog.showModal();
    return new Promise((resolve) => {
      this.dialog.addEventListener("close", () => {
        const isGiven = this.dialog.returnValue === "ok" && value.value.trim() !== "";
        if (isGiven) setKey(value.value.trim());
        resolve(isGiven);
      }, { once: true });
    });
  }

  // Run a call; where it is refused for want of a key, ask for one and run it again.
  async withKey(action) {
    for (;;) {
      try {
        return await action();
      } catch (error) {
        const wantsKey = error instanceof ApiError && error.status === 401;
        if (!wantsKey || !(await this.askForKey())) throw error;
      }
    }
  }
}
