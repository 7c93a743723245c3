/** nginx on this machine, with the configuration of hosting/ around a site. Needs nginx, and openssl for TLS. */

import { execFileSync, spawn, type ChildProcess } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { connect, createServer, type AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { delimiter, join } from "node:path";

export const HOSTING = join(import.meta.dirname, "../../../hosting");
const PATIENCE_MS = 10_000;

/** What nginx serves, and how. */
export interface Site {
    readonly root: string;
    /** Whether to serve HTTP/2 over TLS, with a certificate that is made now. Default: HTTP/1.1 without TLS. */
    readonly tls?: boolean;
    /** Lines of the `server` block. */
    readonly lines: readonly string[];
}

/** An answer in the access log. */
export interface LoggedAnswer {
    /** The path without the query. */
    readonly path: string;
    readonly method: string;
    /** "HTTP/1.1" or "HTTP/2.0". */
    readonly protocol: string;
    readonly status: number;
    /** The header Range of the request; "" if there is none. */
    readonly range: string;
    /** Content-Encoding of the answer; "" if there is none. */
    readonly encoding: string;
    readonly type: string;
    /** Number of the connection. */
    readonly connection: number;
}

const LOG_FORMAT =
    `'{"path":"$uri","method":"$request_method","protocol":"$server_protocol","status":$status,"range":"$http_range",` +
    `"encoding":"$sent_http_content_encoding","type":"$sent_http_content_type","connection":$connection}'`;

/** A running nginx. */
export class Nginx {
    private seen = 0;

    private constructor(
        readonly url: string,
        private readonly folder: string,
        private readonly process: ChildProcess,
    ) {}

    /** Start nginx at a free port of this machine. @throws Error It is not installed, or refuses its configuration. */
    static async start(site: Site): Promise<Nginx> {
        const folder = await mkdtemp(join(tmpdir(), "molkv-nginx-"));
        const port = await freePort();
        await writeFile(join(folder, "nginx.conf"), configuration(site, folder, port));
        if (site.tls === true) makeCertificate(folder);
        // Debian has the program where PATH of ordinary users does not lead.
        const env = { ...process.env, PATH: [process.env.PATH, "/usr/sbin"].join(delimiter) };
        const started = spawn("nginx", ["-p", folder, "-c", join(folder, "nginx.conf"), "-e", "stderr"], {
            env,
            stdio: ["ignore", "ignore", "pipe"],
        });
        const output: Buffer[] = [];
        started.stderr.on("data", (part: Buffer) => output.push(part));
        const ended = new Promise<never>((_, reject) => {
            started.once("error", (error) => {
                reject(new Error(`nginx does not start (${error.message}); install nginx`));
            });
            started.once("exit", () => {
                reject(new Error(`nginx ended: ${Buffer.concat(output).toString().trim()}`));
            });
        });
        ended.catch(() => undefined); // the end after `close` is no error
        await Promise.race([ended, answers(port)]);
        return new Nginx(`${site.tls === true ? "https" : "http"}://127.0.0.1:${port}/`, folder, started);
    }

    /** Return the answers since the last call. */
    async answers(): Promise<LoggedAnswer[]> {
        const lines = (await readFile(join(this.folder, "access.log"), "utf8")).split("\n").slice(0, -1);
        const found = lines.slice(this.seen).map((line) => JSON.parse(line) as LoggedAnswer);
        this.seen = lines.length;
        return found;
    }

    async close(): Promise<void> {
        const ended = once(this.process, "exit");
        this.process.kill();
        await ended;
        await rm(this.folder, { recursive: true });
    }
}

function configuration({ root, tls = false, lines }: Site, folder: string, port: number): string {
    const temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"].map((name) => `${name}_temp_path ${folder}`);
    const certificate = [`ssl_certificate ${folder}/cert.pem`, `ssl_certificate_key ${folder}/key.pem`];
    return `
daemon off;
master_process off;
pid ${folder}/pid;
events {}
http {
    ${temporary.map((line) => `${line};`).join("\n    ")}
    log_format answers escape=json ${LOG_FORMAT};
    access_log ${folder}/access.log answers;
    server {
        listen 127.0.0.1:${port}${tls ? " ssl http2" : ""};
        ${tls ? certificate.map((line) => `${line};`).join("\n        ") : ""}
        root ${root};
        ${lines.join("\n        ")}
    }
}
`;
}

function makeCertificate(folder: string): void {
    const [key, cert] = [join(folder, "key.pem"), join(folder, "cert.pem")];
    const request = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost", "-days", "1"];
    execFileSync("openssl", [...request, "-keyout", key, "-out", cert], { stdio: "ignore" });
}

async function freePort(): Promise<number> {
    const server = createServer().listen(0, "127.0.0.1");
    await once(server, "listening");
    const { port } = server.address() as AddressInfo;
    server.close();
    await once(server, "close");
    return port;
}

/** Wait until something listens at a port. */
async function answers(port: number): Promise<void> {
    for (const start = Date.now(); Date.now() - start < PATIENCE_MS;) {
        const socket = connect(port, "127.0.0.1");
        const isOpen = await new Promise<boolean>((resolve) => {
            socket.once("connect", () => {
                resolve(true);
            });
            socket.once("error", () => {
                resolve(false);
            });
        });
        socket.destroy();
        if (isOpen) return;
        await new Promise((resolve) => setTimeout(resolve, 20));
    }
    throw new Error(`nginx does not listen at port ${port} after ${PATIENCE_MS / 1000} s`);
}
