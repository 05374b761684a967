// Keeps chats in this browser's IndexedDB, recordings and all, so that any answer can be replayed.
// Titles have a store of their own: the list of chats shall not read every recording.

const DATABASE = "diffusiongpt";
const CHATS = "chats";
const TITLES = "titles";

export class History {
  #opening;

  constructor() {
    this.#opening = open();
    this.#opening.catch(() => {});
  }

  // Titles, newest first; rejects where the browser keeps nothing.
  async list() {
    const titles = await settle((await this.#stores("readonly"))[TITLES].getAll());
    return titles.sort((a, b) => b.updated - a.updated);
  }

  async read(id) {
    return settle((await this.#stores("readonly"))[CHATS].get(id));
  }

  async save(chat) {
    const { id, title, updated } = chat;
    const stores = await this.#stores("readwrite");
    stores[CHATS].put(chat);
    return settle(stores[TITLES].put({ id, title, updated }));
  }

  async remove(id) {
    const stores = await this.#stores("readwrite");
    stores[CHATS].delete(id);
    return settle(stores[TITLES].delete(id));
  }

  async #stores(mode) {
    const transaction = (await this.#opening).transaction([CHATS, TITLES], mode);
    return { [CHATS]: transaction.objectStore(CHATS), [TITLES]: transaction.objectStore(TITLES) };
  }
}

async function open() {
  const request = indexedDB.open(DATABASE, 1);
  request.onupgradeneeded = () => {
    for (const name of [CHATS, TITLES]) request.result.createObjectStore(name, { keyPath: "id" });
  };
  return settle(request);
}

function settle(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}
