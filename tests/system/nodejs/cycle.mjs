// One cycle: its clusters, frames and digests, and the stream that carries it.

import { once } from 'node:events';
import { createBLAKE3 } from 'hash-wasm';
import { Problem, metadataOf } from './connection.mjs';

export const CLUSTER_BYTES = 65_536;
const FRAME_CLUSTERS = 16;
const WINDOW_BYTES = 8 << 20;
const EMPTY_DIGEST = Buffer.from('af1349b9f5f9a1a6a0404dea36dcc949', 'hex');

const hasher = await createBLAKE3(128);

/** The first 16 bytes of BLAKE3. */
export function digest(...parts) {
  hasher.init();
  for (const part of parts) hasher.update(part);
  return Buffer.from(hasher.digest('binary'));
}

function number(value, bytes) {
  const buffer = Buffer.alloc(bytes);
  if (bytes === 8) buffer.writeBigUInt64BE(BigInt(value));
  else buffer.writeUInt16BE(value);
  return buffer;
}

/** The name of a cycle's content and of its whole past; `clusters`: for each disk Map(index → plain digest). */
export function cycleDigest(parent, seq, disks, clusters) {
  const parts = [Buffer.from('vmreplica.cycle.v1\0'), parent, number(seq, 8)];
  disks.forEach((disk, place) => {
    const target = Buffer.from(disk.target);
    const sent = [...clusters[place]].sort(([a], [b]) => a - b);
    parts.push(number(target.length, 2), target);
    parts.push(number(disk.size_bytes, 8), number(sent.length, 8));
    for (const [index, plain] of sent) parts.push(number(index, 8), plain);
  });
  return digest(...parts);
}

/** A zstd frame of one repeated byte: header with content size 65,536, one RLE block. */
function repeatedByte(byte) {
  return Buffer.from([0x28, 0xb5, 0x2f, 0xfd, 0xa0, 0x00, 0x00, 0x01, 0x00, 0x03, 0x00, 0x08, byte]);
}

/** How a cluster travels: nothing for zeros, a zstd frame for one repeated byte, else raw. */
function stored(plain) {
  if (plain.some((byte) => byte !== plain[0])) return plain;
  return plain[0] === 0 ? Buffer.alloc(0) : repeatedByte(plain[0]);
}

/** A frame of these clusters: [[index, 65,536 plain bytes], …]. */
function frameOf(disk, clusters) {
  const parts = clusters.map(([, plain]) => stored(plain));
  return {
    disk,
    indexes: clusters.map(([index]) => index),
    stored_bytes: parts.map((part) => part.length),
    digests: Buffer.concat(clusters.map(([, plain]) => digest(plain))),
    payload: Buffer.concat(parts),
    stored_digests: Buffer.concat(parts.map((p) => (p.length ? digest(p) : EMPTY_DIGEST))),
  };
}

/** A cycle with all its frames; the same frames at every attempt, which is what resume needs. */
export class Cycle {
  /**
   * @param head {seq, digest, cycleId} that this cycle follows
   * @param disks [{target, size_bytes}]
   * @param clusters for each disk Map(index → plain bytes)
   */
  constructor({ kind, cycleId, since, head, disks, clusters, domainXml = Buffer.alloc(0) }) {
    Object.assign(this, { kind, cycleId, since, disks, domainXml });
    this.seq = head.seq + 1;
    this.parent = head.digest;
    this.frames = clusters.flatMap((ofDisk, place) => {
      const all = [...ofDisk];
      const count = Math.ceil(all.length / FRAME_CLUSTERS);
      return Array.from({ length: count }, (_, n) =>
        frameOf(place, all.slice(n * FRAME_CLUSTERS, (n + 1) * FRAME_CLUSTERS)));
    });
    this.clusterCount = clusters.reduce((sum, ofDisk) => sum + ofDisk.size, 0);
    const digests = clusters.map(
      (ofDisk) => new Map([...ofDisk].map(([index, plain]) => [index, digest(plain)])));
    this.digest = cycleDigest(this.parent, this.seq, disks, digests);
  }

  open(replicaId, epoch, resume) {
    return {
      replica_id: replicaId, epoch, seq: this.seq, parent_digest: this.parent, kind: this.kind,
      disks: this.disks, resume, domain_xml: this.domainXml, cycle_id: this.cycleId,
      since_cycle_id: this.since,
    };
  }

  close() {
    const now = Date.now();
    return {
      clusters: this.clusterCount, cycle_digest: this.digest,
      point_time: { seconds: Math.floor(now / 1000), nanos: (now % 1000) * 1_000_000 },
    };
  }
}

/** One Replicate call. */
export class CycleStream {
  constructor(client, cycle, pairs) {
    this.client = client;
    this.cycle = cycle;
    this.received = 0;
    this.progressReports = 0;
    this.mostBeyond = 0;
    this.failure = null;
    this.heardAt = Date.now();
    this.replies = [];
    this.waiting = [];
    this.call = client.Replicate(metadataOf(pairs));
    this.call.on('data', (reply) => this.#take(reply));
    this.call.on('error', (error) => this.fail(Problem.of(error)));
  }

  #take(reply) {
    this.heardAt = Date.now();
    if (reply.body === 'durable') {
      this.received = reply.durable.received_frames;
      this.progressReports += 1;
    } else this.replies.push(reply);
    this.#wake();
  }

  #wake() {
    for (const wake of this.waiting.splice(0)) wake();
  }

  /** Every waiter gets this problem; the first one counts. */
  fail(problem) {
    this.failure ??= problem;
    this.#wake();
  }

  #news() {
    return new Promise((wake) => this.waiting.push(wake));
  }

  async #next(...kinds) {
    while (this.replies.length === 0) {
      if (this.failure) throw this.failure;
      await this.#news();
    }
    const reply = this.replies.shift();
    if (!kinds.includes(reply.body)) throw new Error(`unexpected ${reply.body}`);
    return reply;
  }

  async #send(message) {
    if (this.failure) throw this.failure;
    if (this.call.write(message)) return;
    const drained = once(this.call, 'drain').catch(() => {});
    await Promise.race([drained, this.#news()]);
  }

  /** Open, and wait: `{accepted}` or, for a repeated cycle, `{acknowledged}`. */
  async open(replicaId, epoch, resume) {
    await this.#send({ open: this.cycle.open(replicaId, epoch, resume) });
    return this.#next('accepted', 'acknowledged');
  }

  /** Bytes of payload sent beyond what the receiver has. */
  #beyond(sent) {
    const ahead = this.cycle.frames.slice(this.received, sent);
    return ahead.reduce((sum, frame) => sum + frame.payload.length, 0);
  }

  /** Frames from `first` up to but not including `end`, never more than the window ahead. */
  async send(first, end = this.cycle.frames.length) {
    this.received = Math.max(this.received, first);
    for (let n = first; n < end; n += 1) {
      while (this.#beyond(n + 1) > WINDOW_BYTES) {
        if (this.failure) throw this.failure;
        await this.#news();
      }
      this.mostBeyond = Math.max(this.mostBeyond, this.#beyond(n + 1));
      await this.#send({ clusters: this.cycle.frames[n] });
    }
  }

  /** Until the receiver has this many frames, so that a cut does not take them along. */
  async until(frames) {
    while (this.received < frames) {
      if (this.failure) throw this.failure;
      await this.#news();
    }
  }

  /** Close, and wait for the acknowledgement. */
  async close() {
    await this.#send({ close: this.cycle.close() });
    this.call.end();
    return (await this.#next('acknowledged')).acknowledged;
  }

  /** Give the call up; nothing of it is heard any more. */
  drop() {
    this.call.cancel();
    this.client.close();
  }
}
