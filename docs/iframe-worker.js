// The search runs in a Worker, which browsers refuse to pages opened from disk (file://). There it runs in a hidden frame.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(script) {
      super()
      this.waiting = []
      const frame = document.createElement("iframe")
      frame.hidden = true
      frame.srcdoc = ""
      frame.onload = () => {
        if (this.inner) return
        const inner = frame.contentWindow
        inner.postMessage = data => this.dispatchEvent(new MessageEvent("message", { data })) // an answer
        inner.importScripts = (...files) => Promise.all(files.map(file => add(inner.document, file)))
        add(inner.document, String(script)).then(() => {
          this.inner = inner
          this.waiting.splice(0).forEach(data => this.postMessage(data))
        })
      }
      document.body.appendChild(frame)
    }
    postMessage(data) {
      if (this.inner) this.inner.dispatchEvent(new this.inner.MessageEvent("message", { data }))
      else this.waiting.push(data)
    }
    terminate() {}
  }
}

function add(page, file) {
  return new Promise((done, failed) => {
    const script = page.createElement("script")
    script.src = file
    script.onload = done
    script.onerror = failed
    page.head.appendChild(script)
  })
}
