// Connections to a replica cluster: mutual TLS, the services of the .proto files, problems.

import { readFileSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import grpc from '@grpc/grpc-js';
import protoLoader from '@grpc/proto-loader';
import protobuf from 'protobufjs';

// The details of a problem are Google's standard error model, which is not among our .proto files.
const ERROR_MODEL = protobuf.parse(
  `syntax = "proto3";
   message Any { string type_url = 1; bytes value = 2; }
   message Status { int32 code = 1; string message = 2; repeated Any details = 3; }
   message ErrorInfo { string reason = 1; string domain = 2; map<string, string> metadata = 3; }`,
  { keepCase: true },
).root;

/** What a cluster refused, in its own words. */
export class Problem extends Error {
  constructor(error, reason, metadata) {
    super(`${reason || grpc.status[error.code]}: ${error.details || error.message}`);
    this.code = grpc.status[error.code];
    this.reason = reason;
    this.metadata = metadata;
    this.retryable = metadata.retryable === 'true' || error.code === grpc.status.UNAVAILABLE;
  }

  /** From any gRPC error; without details (a cut connection) the reason is empty. */
  static of(error) {
    const [details] = error.metadata?.get('grpc-status-details-bin') ?? [];
    if (!details) return new Problem(error, '', {});
    const status = ERROR_MODEL.lookupType('Status').decode(details);
    const any = status.details.find((each) => each.type_url.endsWith('google.rpc.ErrorInfo'));
    if (!any) return new Problem(error, '', {});
    const info = ERROR_MODEL.lookupType('ErrorInfo').decode(any.value);
    return new Problem(error, info.reason, info.metadata);
  }
}

/** Metadata of a call from plain pairs. */
export function metadataOf(pairs) {
  const metadata = new grpc.Metadata();
  for (const [key, value] of Object.entries(pairs)) metadata.set(key, value);
  return metadata;
}

/** A replica cluster as one client sees it: one certificate, any number of addresses. */
export class Cluster {
  constructor({ protos, ca, certificate, key, accessPoint }) {
    this.accessPoint = accessPoint;
    this.credentials = grpc.credentials.createSsl(
      readFileSync(ca), readFileSync(key), readFileSync(certificate));
    const directory = 'vmreplica/v1';
    const files = readdirSync(join(protos, directory)).filter((name) => name.endsWith('.proto'));
    const loaded = protoLoader.loadSync(files.map((name) => `${directory}/${name}`), {
      includeDirs: [protos], keepCase: true, longs: Number, enums: String, defaults: true,
      oneofs: true,
    });
    this.services = grpc.loadPackageDefinition(loaded).vmreplica.v1;
    this.clients = [];
  }

  /** A client of one service; `serverName` must be among the DNS names of what answers. */
  client(service, address = this.accessPoint, serverName = address.replace(/:\d+$/, '')) {
    const client = new this.services[service](address, this.credentials, {
      'grpc.ssl_target_name_override': serverName,
      'grpc.default_authority': serverName,
      // A channel of its own for each client: a destroyed connection takes nothing else along.
      'grpc.use_local_subchannel_pool': 1,
      'grpc.initial_reconnect_backoff_ms': 200,
      'grpc.max_reconnect_backoff_ms': 1000,
    });
    this.clients.push(client);
    return client;
  }

  /** One call at the client access point. */
  call(service, method, request, pairs = {}) {
    const client = this.client(service);
    return new Promise((resolve, reject) => {
      const deadline = Date.now() + 10_000;
      client[method](request, metadataOf(pairs), { deadline }, (error, response) => {
        client.close();
        if (error) reject(Problem.of(error));
        else resolve(response);
      });
    });
  }

  close() {
    for (const client of this.clients) client.close();
  }
}
