// A client as Java's own sockets make it: dual-stack, so that IPv4 addresses reach the kernel in mapped form.
// Usage: Client HOST PORT. Over TCP, over TCP without blocking, over a connected and over an unconnected UDP socket it
// says hello; for each it prints where the answer comes from, as the socket sees it, and the answer.

import java.net.DatagramPacket;
import java.net.DatagramSocket;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.net.Socket;
import java.nio.ByteBuffer;
import java.nio.channels.SelectionKey;
import java.nio.channels.Selector;
import java.nio.channels.SocketChannel;

class Client {
    static final byte[] HELLO = "hello".getBytes();
    static final byte[] ANSWER = new byte[100];

    public static void main(String[] arguments) throws Exception {
        InetSocketAddress target =
            new InetSocketAddress(InetAddress.getByName(arguments[0]), Integer.parseInt(arguments[1]));
        tcp(target);
        nonBlocking(target);
        udp(target, true);
        udp(target, false);
    }

    static void tcp(InetSocketAddress target) throws Exception {
        try (Socket socket = new Socket()) {
            socket.connect(target, 5000);
            socket.getOutputStream().write(HELLO);
            int length = socket.getInputStream().read(ANSWER);
            report(socket.getRemoteSocketAddress(), length);
        }
    }

    static void nonBlocking(InetSocketAddress target) throws Exception {
        try (SocketChannel channel = SocketChannel.open(); Selector selector = Selector.open()) {
            channel.configureBlocking(false);
            if (!channel.connect(target)) {
                SelectionKey key = channel.register(selector, SelectionKey.OP_CONNECT);
                selector.select(5000);
                channel.finishConnect();
                key.cancel();
                selector.selectNow();
            }
            channel.configureBlocking(true);
            channel.write(ByteBuffer.wrap(HELLO));
            int length = channel.read(ByteBuffer.wrap(ANSWER));
            report(channel.getRemoteAddress(), length);
        }
    }

    static void udp(InetSocketAddress target, boolean connected) throws Exception {
        try (DatagramSocket socket = new DatagramSocket()) {
            socket.setSoTimeout(5000);
            if (connected) {
                socket.connect(target);
            }
            socket.send(new DatagramPacket(HELLO, HELLO.length, target));
            DatagramPacket answer = new DatagramPacket(ANSWER, ANSWER.length);
            socket.receive(answer);
            report(answer.getSocketAddress(), answer.getLength());
        }
    }

    static void report(Object from, int length) {
        InetSocketAddress address = (InetSocketAddress) from;
        String host = address.getAddress().getHostAddress();
        System.out.println(host + " " + address.getPort() + " " + new String(ANSWER, 0, length));
    }
}
