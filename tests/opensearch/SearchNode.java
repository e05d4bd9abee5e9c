import java.nio.file.Path;
import java.util.List;
import org.opensearch.common.settings.Settings;
import org.opensearch.env.Environment;
import org.opensearch.node.Node;
import org.opensearch.transport.Netty4Plugin;

/** One OpenSearch node on loopback: arguments are its home, its HTTP port and its transport port. */
public class SearchNode {
    static final class Embedded extends Node {
        Embedded(Environment environment) {
            super(environment, List.of(Netty4Plugin.class), false);
        }
    }

    public static void main(String[] arguments) throws Exception {
        Settings settings = Settings.builder()
            .put("path.home", arguments[0])
            .put("http.port", arguments[1])
            .put("transport.port", arguments[2])
            .put("http.type", "netty4")
            .put("transport.type", "netty4")
            .put("network.host", "127.0.0.1")
            .put("discovery.type", "single-node")
            .put("node.name", "tests")
            .put("cluster.name", "tests")
            .put("cluster.routing.allocation.disk.threshold_enabled", false)
            .build();
        Node node = new Embedded(new Environment(settings, Path.of(arguments[0], "config")));
        node.start();
        Thread.currentThread().join();
    }
}
