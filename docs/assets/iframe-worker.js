/* Lets the search work in pages that are opened as files, where browsers start no workers: the script of the worker runs
   in a frame. The theme asks for the name `IFrameWorker` to find its other scripts. */
if (location.protocol === "file:") {
  window.IFrameWorker = class extends EventTarget {
    constructor(url) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      this.frame = frame;
      this.ready = new Promise((resolve) => {
        frame.addEventListener("load", () => resolve(this.start(url)), { once: true });
        document.body.append(frame);
      });
    }

    async start(url) {
      const inner = this.frame.contentWindow;
      inner.postMessage = (data) => {
        const event = new MessageEvent("message", { data });
        this.dispatchEvent(event);
        this.onmessage?.(event);
      };
      inner.importScripts = async (...urls) => {
        for (const one of urls) await this.load(one);
      };
      await this.load(url);
    }

    load(url) {
      return new Promise((resolve, reject) => {
        const script = this.frame.contentDocument.createElement("script");
        Object.assign(script, { src: url, onload: resolve, onerror: reject });
        this.frame.contentDocument.body.append(script);
      });
    }

    async postMessage(data) {
      await this.ready;
      this.frame.contentWindow.dispatchEvent(new MessageEvent("message", { data }));
    }

    terminate() {
      this.frame.remove();
    }
  };
  window.Worker = window.IFrameWorker;
}
