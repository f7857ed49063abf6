/* Browsers start no Worker on pages opened from a folder (file://). There the search runs in a hidden frame instead. */
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      document.body.appendChild(frame);
      const inside = frame.contentWindow;
      this.started = new Promise((resolve) => {
        window.addEventListener("message", (event) => {
          if (event.source === inside || event.source === window) {
            const message = new MessageEvent("message", { data: event.data });
            this.dispatchEvent(message);
            if (this.onmessage) this.onmessage(message);
          }
        });
        inside.postMessage = (data) => window.postMessage(data, "*");
        inside.importScripts = (...urls) =>
          urls.reduce((before, each) => before.then(() => new Promise((loaded, failed) => {
            const script = inside.document.createElement("script");
            script.src = new URL(each, url);
            script.onload = loaded;
            script.onerror = failed;
            inside.document.body.appendChild(script);
          })), Promise.resolve());
        const script = inside.document.createElement("script");
        script.src = url;
        script.onload = resolve;
        inside.document.body.appendChild(script);
      });
      this.inside = inside;
    }

    postMessage(data) {
      this.started.then(() => this.inside.dispatchEvent(new this.inside.MessageEvent("message", { data })));
    }

    terminate() {}
  };
}
