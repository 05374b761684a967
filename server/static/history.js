// Keeps chats in this browser's IndexedDB, recordings and all, so that any answer can be replayed.

const DATABASE = "diffusiongpt";
const STORE = "chats";

export class History {
  #opening;

  constructor() {
    this.#opening = open();
    this.#opening.catch(() => {});
  }

  // Chats without their turns, newest first; rejects where the browser keeps nothing.
  async list() {
    const chats = await this.#ask("readonly", (store) => store.getAll());
    return chats.sort((a, b) => b.updated - a.updated).map(({ id, title, updated }) => ({ id, title, updated }));
  }

  async read(id) {
    return this.#ask("readonly", (store) => store.get(id));
  }

  async save(chat) {
    return this.#ask("readwrite", (store) => store.put(chat));
  }

  async remove(id) {
    return this.#ask("readwrite", (store) => store.delete(id));
  }

  async #ask(mode, action) {
    const database = await this.#opening;
    return settle(action(database.transaction(STORE, mode).objectStore(STORE)));
  }
}

async function open() {
  const request = indexedDB.open(DATABASE, 1);
  request.onupgradeneeded = () => request.result.createObjectStore(STORE, { keyPath: "id" });
  return settle(request);
}

function settle(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}
