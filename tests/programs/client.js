// A client as Node's own sockets make it.
// Usage: client.js HOST PORT. Over TCP, over a connected and over an unconnected UDP socket it says hello; for each it
// prints where the answer comes from, as the socket sees it, and the answer.

const dgram = require("node:dgram");
const net = require("node:net");

const [host, port] = [process.argv[2], Number(process.argv[3])];

function report(from, answer) {
  console.log(`${from.address} ${from.port} ${answer}`);
}

function tcp() {
  return new Promise((resolve, reject) => {
    const socket = net.connect({ host, port }, () => socket.write("hello"));
    socket.on("error", reject);
    socket.on("data", (answer) => {
      report({ address: socket.remoteAddress, port: socket.remotePort }, answer);
      socket.end();
      resolve();
    });
  });
}

function udp(connected) {
  return new Promise((resolve, reject) => {
    const socket = dgram.createSocket(host.includes(":") ? "udp6" : "udp4");
    socket.on("error", reject);
    socket.on("message", (answer, from) => {
      report(connected ? socket.remoteAddress() : from, answer);
      socket.close();
      resolve();
    });
    if (connected) {
      socket.connect(port, host, () => socket.send("hello"));
    } else {
      socket.send("hello", port, host);
    }
  });
}

tcp()
  .then(() => udp(true))
  .then(() => udp(false));
