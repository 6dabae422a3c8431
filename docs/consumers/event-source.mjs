// As much of the standard EventSource as the example needs, over fetch: events, reconnection, Last-Event-ID.
export class EventSource extends EventTarget {
  constructor(url) {
    super();
    this.run(url);
  }

  async run(url) {
    let id = '';
    for (;;) {
      try {
        const headers = { accept: 'text/event-stream', ...(id && { 'last-event-id': id }) };
        const answer = await fetch(url, { headers });
        if (!answer.ok) throw new Error(`${answer.status}`);
        this.dispatchEvent(new Event('open'));
        let text = '';
        for await (const chunk of answer.body.pipeThrough(new TextDecoderStream())) {
          text += chunk;
          const blocks = text.split('\n\n');
          text = blocks.pop();
          for (const block of blocks) {
            const fields = { event: 'message', data: [] };
            for (const line of block.split('\n')) {
              const colon = line.indexOf(':');
              if (colon <= 0) continue;
              const [name, value] = [line.slice(0, colon), line.slice(colon + 1).replace(/^ /, '')];
              if (name === 'data') fields.data.push(value);
              if (name === 'event') fields.event = value;
              if (name === 'id') id = value;
            }
            if (fields.data.length === 0) continue;
            this.dispatchEvent(Object.assign(new Event(fields.event), { data: fields.data.join('\n') }));
          }
        }
      } catch {
        // Tried again, as the standard says.
      }
      this.dispatchEvent(new Event('error'));
      await new Promise((resolve) => setTimeout(resolve, 250));
    }
  }
}
