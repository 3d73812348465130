// A way to an address that can be cut: a TCP relay of this process whose sockets are destroyed.

import net from 'node:net';
import { once } from 'node:events';

export class CuttableWay {
  constructor(address) {
    const place = address.lastIndexOf(':');
    this.host = address.slice(0, place);
    this.port = Number(address.slice(place + 1));
    this.sockets = new Set();
    this.server = net.createServer((near) => {
      const far = net.connect(this.port, this.host);
      for (const [from, to] of [[near, far], [far, near]]) {
        this.sockets.add(from);
        from.on('error', () => to.destroy());
        from.on('close', () => { this.sockets.delete(from); to.destroy(); });
        from.pipe(to);
      }
    });
  }

  /** Where to connect in place of the address. */
  async open() {
    this.server.listen(0, '127.0.0.1');
    await once(this.server, 'listening');
    return `127.0.0.1:${this.server.address().port}`;
  }

  /** Reset every connection in the middle of whatever it carries. */
  cut() {
    for (const socket of this.sockets) socket.resetAndDestroy();
    this.server.close();
  }
}
