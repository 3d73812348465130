// A sender: finds the owner, streams a cycle to it, and goes on wherever it was interrupted.

import { setTimeout as pause } from 'node:timers/promises';
import { Problem } from './connection.mjs';
import { CuttableWay } from './cut.mjs';
import { CycleStream } from './cycle.mjs';

const SILENCE_MS = 5_000;
const TRY_AGAIN = new Set(['STALE_EPOCH', 'NOT_OWNER']);

export class Sender {
  /** @param route 'direct': to the owner; 'relay': everything at the client access point */
  constructor(cluster, route) {
    this.cluster = cluster;
    this.route = route;
    this.replicaId = '';
  }

  locate() {
    const request = { replica_id: this.replicaId, relay: this.route === 'relay' };
    return this.cluster.call('LocationService', 'Locate', request);
  }

  async head() {
    const request = { replica_id: this.replicaId };
    const { replica } = await this.cluster.call('ReplicaService', 'GetReplica', request);
    return {
      seq: replica.acked_seq, digest: replica.acked_digest, cycleId: replica.acked_cycle_id,
    };
  }

  #stream(cycle, place, address) {
    const pairs = this.route === 'relay'
      ? { 'vmreplica-replica-id': this.replicaId }
      : { 'vmreplica-ticket': place.ticket };
    const client = this.cluster.client('CycleService', address, place.server_name);
    return new CycleStream(client, cycle, pairs);
  }

  /** A dead host or way says nothing for minutes: leave it for the replica's new owner, or try anew. */
  async #watch(stream, epoch, done) {
    const leave = (details) => stream.fail(new Problem({ code: 14, details }, '', {}));
    while (!done.aborted) {
      await pause(1000, undefined, { signal: done }).catch(() => {});
      const place = await this.locate().catch(() => null);
      if (place && place.epoch > epoch) leave('the owner has changed');
      if (Date.now() - stream.heardAt > SILENCE_MS) leave('nothing was heard any more');
    }
  }

  /**
   * Send one cycle until it is acknowledged.
   * @param cutAfter destroy the connection once the receiver has this many frames (0 = never)
   * @param onFrames [frames, async function]: called when the receiver has so many, once
   * @returns the acknowledgement, and what each attempt met
   */
  async replicate(cycle, { cutAfter = 0, onFrames = [0, null], seconds = 60 } = {}) {
    const attempts = [];
    const end = Date.now() + seconds * 1000;
    let interruptions = [
      cutAfter && { frames: cutAfter, act: async (way) => way.cut() },
      onFrames[0] && { frames: onFrames[0], act: async () => onFrames[1]() },
    ].filter(Boolean);
    for (;;) {
      const attempt = { resume: attempts.length > 0 };
      attempts.push(attempt);
      try {
        const acknowledged = await this.#attempt(cycle, attempt, interruptions);
        return { acknowledged, attempts };
      } catch (problem) {
        if (!(problem instanceof Problem)) throw problem;
        attempt.problem = problem.message;
        const again = problem.code === 'UNAVAILABLE' || TRY_AGAIN.has(problem.reason);
        if (!again || Date.now() > end) throw problem;
        interruptions = interruptions.filter((each) => !each.done);
        await pause(200);
      }
    }
  }

  async #attempt(cycle, attempt, interruptions) {
    const place = await this.locate();
    Object.assign(attempt, { node: place.node, epoch: place.epoch });
    const way = new CuttableWay(place.address);
    const stream = this.#stream(cycle, place, await way.open());
    const done = new AbortController();
    const watch = this.#watch(stream, place.epoch, done.signal);
    try {
      const reply = await stream.open(this.replicaId, place.epoch, attempt.resume);
      if (reply.acknowledged) return reply.acknowledged;
      let frames = reply.accepted.durable_frames;
      attempt.from_frame = frames;
      for (const each of interruptions) {
        if (each.frames < frames) continue;
        await stream.send(frames, each.frames);
        frames = each.frames;
        // Progress is reported every few frames: wait for the first report, not for the last.
        await stream.until(Math.min(frames, 1));
        each.done = true;
        await each.act(way);
      }
      await stream.send(frames);
      return await stream.close();
    } finally {
      Object.assign(attempt, {
        progress_reports: stream.progressReports, most_beyond: stream.mostBeyond,
      });
      done.abort();
      await watch;
      stream.drop();
      way.cut();
    }
  }
}
