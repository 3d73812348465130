// A whole story of a foreign client. Usage: node story.mjs SPEC.json
// Prints one JSON object a line for each step; says {"step": "paused"} and waits for a line on
// standard input where its caller means to break something.

import { randomBytes } from 'node:crypto';
import { closeSync, openSync, readFileSync, readSync } from 'node:fs';
import { createInterface } from 'node:readline';
import { Cluster, Problem } from './connection.mjs';
import { CLUSTER_BYTES, Cycle, cycleDigest, digest } from './cycle.mjs';
import { Sender } from './sender.mjs';

const spec = JSON.parse(readFileSync(process.argv[2], 'utf8'));
const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]();

function tell(step, facts = {}) {
  process.stdout.write(`${JSON.stringify({ step, ...facts })}\n`);
}

/** The vector of the wire's documentation: digests are what both sides must agree on. */
function vector() {
  const filled = (byte) => digest(Buffer.alloc(CLUSTER_BYTES, byte));
  const disks = [
    { target: 'vda', size_bytes: 10_485_760 },
    { target: 'vdb', size_bytes: 65_536 },
  ];
  const vda = new Map([[159, filled(9)], [1, filled(0)], [2, filled(5)], [3, filled(7)]]);
  return cycleDigest(Buffer.alloc(16), 1, disks, [vda, new Map([[0, filled(1)]])]).toString('hex');
}

/** Cluster `index` of an image file, padded with zeros. */
function clusterOf(file, index) {
  const plain = Buffer.alloc(CLUSTER_BYTES);
  const descriptor = openSync(file, 'r');
  readSync(descriptor, plain, 0, CLUSTER_BYTES, index * CLUSTER_BYTES);
  closeSync(descriptor);
  return plain;
}

/** For each disk the clusters to send: those named, or all that are not zero. */
function clustersOf(images, changed) {
  return spec.disks.map((disk, place) => {
    const count = Math.ceil(disk.size_bytes / CLUSTER_BYTES);
    const indexes = changed ? changed[place] : Array.from({ length: count }, (_, i) => i);
    const read = indexes.map((index) => [index, clusterOf(images[place], index)]);
    return new Map(changed ? read : read.filter(([, plain]) => plain.some((byte) => byte !== 0)));
  });
}

async function refusal(work) {
  try {
    await work();
  } catch (problem) {
    if (problem instanceof Problem) return problem;
    throw problem;
  }
  throw new Error('was not refused');
}

async function create(cluster) {
  const request = {
    vm_uuid: spec.vm_uuid, vm_name: spec.vm_name, disks: spec.disks, frequency_ms: 300_000,
    domain_xml: Buffer.from(spec.domain_xml ?? ''),
    primary_access_point: spec.primary_access_point,
  };
  const first = await cluster.call('ReplicaService', 'CreateReplica', request);
  const second = await cluster.call('ReplicaService', 'CreateReplica', request);
  tell('created', {
    replica_id: first.replica.replica_id, again: second.replica.replica_id,
    changed: [first.changed, second.changed],
  });
  return first.replica.replica_id;
}

/** Only the server whose certificate bears the name may get data. */
async function wrongServer(sender) {
  const place = await sender.locate();
  const client = sender.cluster.client('LocationService', place.address, 'another.example');
  const problem = await refusal(() => new Promise((resolve, reject) => {
    client.Locate({ replica_id: sender.replicaId }, { deadline: Date.now() + 5000 },
      (error, reply) => (error ? reject(Problem.of(error)) : resolve(reply)));
  })).finally(() => client.close());
  tell('wrong-server', { code: problem.code, message: problem.message });
}

async function cycle(sender, name, images, changed, options) {
  const head = await sender.head();
  const kind = changed ? 'CYCLE_KIND_DELTA' : 'CYCLE_KIND_FULL';
  const made = new Cycle({
    kind, head, disks: spec.disks, clusters: clustersOf(images, changed),
    cycleId: randomBytes(16), since: changed ? head.cycleId : Buffer.alloc(0),
  });
  const { acknowledged, attempts } = await sender.replicate(made, options);
  const now = await sender.head();
  tell(name, {
    seq: acknowledged.seq, duplicate: acknowledged.duplicate, epoch: acknowledged.epoch,
    frames: made.frames.length, attempts,
    digest_agrees: acknowledged.cycle_digest.equals(made.digest),
    head_is_ours: now.cycleId.equals(made.cycleId) && now.digest.equals(made.digest),
  });
  return made;
}

async function repeated(sender, made) {
  const { acknowledged, attempts } = await sender.replicate(made);
  tell('repeated', {
    seq: acknowledged.seq, duplicate: acknowledged.duplicate, attempts,
    digest_agrees: acknowledged.cycle_digest.equals(made.digest),
  });
  const other = Object.assign(Object.create(Object.getPrototypeOf(made)), made, {
    cycleId: randomBytes(16), since: made.cycleId, parent: made.digest, seq: made.seq + 5,
  });
  const problem = await refusal(() => sender.replicate(other));
  tell('gap', {
    code: problem.code, reason: problem.reason, remedy: problem.metadata.remedy ?? '',
  });
}

async function main() {
  tell('vector', { digest: vector() });
  const cluster = new Cluster(spec);
  const sender = new Sender(cluster, spec.route);
  const unknown = await refusal(() => cluster.call('LocationService', 'Locate', {
    replica_id: '00000000-0000-4000-8000-000000000000', relay: false,
  }));
  tell('unknown', { code: unknown.code, reason: unknown.reason });
  sender.replicaId = await create(cluster);
  const { ticket, ...place } = await sender.locate();
  tell('located', { ...place, has_ticket: ticket !== '' });
  await wrongServer(sender);
  await cycle(sender, 'full', spec.images[0], null, { cutAfter: spec.cut_after });
  const delta = await cycle(sender, 'delta', spec.images[1], spec.changed[0]);
  await repeated(sender, delta);
  const interrupted = spec.pause_after && [spec.pause_after, async () => {
    tell('paused', { node: (await sender.locate()).node });
    await lines.next();
  }];
  if (interrupted) {
    const options = { onFrames: interrupted, seconds: 120 };
    await cycle(sender, 'moved', spec.images[2], spec.changed[1], options);
  }
  cluster.close();
  tell('done');
  process.exit(0);
}

await main();
