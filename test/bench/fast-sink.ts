// A process of its own: an SMTP server that does next to nothing, since smtp-sink takes some 230 MB/s at most. Of a body it
// looks at the last five octets of each chunk: its clients wait for the reply to their dot, so the end of data is an end
// of a chunk. Writes to standard output what sink.ts reads. usage: fast-sink PORT
import { writeSync } from 'node:fs';
import net, { type Socket } from 'node:net';

const END_OF_DATA = Buffer.from('\r\n.\r\n');
const BACKLOG = 4_096;

let messages = 0;
let octets = 0;

function serve(socket: Socket): void {
  let commands = '';
  let inBody = false;
  // What the next chunk's end may be short of.
  let tail: Buffer = Buffer.alloc(0);
  socket.setNoDelay(true);
  socket.on('error', () => socket.destroy());
  socket.write('220 fast-sink ESMTP\r\n');
  socket.on('data', (chunk) => {
    if (inBody) takeBody(chunk);
    else takeCommands(chunk.toString('latin1'));
  });

  function takeBody(chunk: Buffer): void {
    octets += chunk.length;
    const end = chunk.length < END_OF_DATA.length ? Buffer.concat([tail, chunk]) : chunk;
    tail = end.subarray(-END_OF_DATA.length);
    if (!tail.equals(END_OF_DATA)) return;
    inBody = false;
    messages++;
    writeSync(1, `mesg=${messages} octets=${octets}\r`);
    socket.write('250 2.0.0 Ok\r\n');
  }

  function takeCommands(text: string): void {
    commands += text;
    for (let end = commands.indexOf('\n'); end >= 0 && !inBody; end = commands.indexOf('\n')) {
      const verb = commands.slice(0, 4).toUpperCase();
      commands = commands.slice(end + 1);
      if (verb === 'QUIT') return void socket.end('221 2.0.0 Bye\r\n');
      if (verb === 'DATA') begin();
      else
        socket.write(
          verb === 'EHLO' ? '250-fast-sink\r\n250-PIPELINING\r\n250 8BITMIME\r\n' : '250 2.0.0 Ok\r\n',
        );
    }
  }

  function begin(): void {
    inBody = true;
    tail = Buffer.alloc(0);
    socket.write('354 Go ahead\r\n');
  }
}

net.createServer(serve).listen(Number(process.argv[2]), '127.0.0.1', BACKLOG);
