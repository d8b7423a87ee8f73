import java.nio.file.Files;
import java.nio.file.Path;
import org.apache.flink.configuration.Configuration;
import org.apache.flink.streaming.api.environment.StreamExecutionEnvironment;
import org.apache.flink.table.api.EnvironmentSettings;
import org.apache.flink.table.api.bridge.java.StreamTableEnvironment;

/**
 * Runs one SQL job on an Apache Flink inside this process, with one slot, to its end: the peer of `make bench`.
 *
 * <p>Arguments: the file with the statements (separated by ";"), a folder for checkpoints and other temporary files. The last
 * statement is an INSERT over bounded sources.
 */
public class Peer {
  public static void main(String[] arguments) throws Exception {
    Path folder = Path.of(arguments[1]).toAbsolutePath();
    Configuration settings = new Configuration();
    settings.setString("parallelism.default", "1");
    settings.setString("execution.checkpointing.interval", "1s");
    settings.setString("execution.checkpointing.mode", "EXACTLY_ONCE");
    settings.setString("execution.checkpointing.dir", folder.resolve("checkpoints").toUri().toString());
    settings.setString("io.tmp.dirs", folder.toString());
    settings.setString("state.backend.type", "hashmap");
    settings.setString("taskmanager.memory.network.max", "64mb");
    settings.setString("table.local-time-zone", "UTC");
    StreamExecutionEnvironment environment = StreamExecutionEnvironment.createLocalEnvironment(1, settings);
    StreamTableEnvironment tables =
        StreamTableEnvironment.create(
            environment, EnvironmentSettings.newInstance().inStreamingMode().withConfiguration(settings).build());
    long start = System.nanoTime();
    for (String statement : Files.readString(Path.of(arguments[0])).split(";")) {
      if (statement.isBlank()) continue;
      var result = tables.executeSql(statement);
      if (statement.strip().startsWith("INSERT")) result.await();
    }
    System.out.printf("{\"job_seconds\": %.3f}%n", (System.nanoTime() - start) / 1e9);
    System.exit(0); // the local cluster's threads would keep the process
  }
}
