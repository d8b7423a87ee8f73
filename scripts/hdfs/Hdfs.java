import java.io.BufferedReader;
import java.io.File;
import java.io.IOException;
import java.io.InputStreamReader;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardCopyOption;
import org.apache.hadoop.conf.Configuration;
import org.apache.hadoop.hdfs.MiniDFSCluster;

/**
 * A small HDFS for tests: one name node and one data node in this process, on loopback. Hdfs FOLDER PORT serves until it is
 * ended (port 0 takes a free one) and writes its address to FOLDER/address when it can be used. Started again on the same folder it finds its data.
 *
 * Permissions are enforced: a test can find out what happens without the right to write. The user is whoever the client says
 * it is (simple authentication), and the one that started this process is the superuser.
 *
 * Commands, one a line on standard input, are for the name node alone: "away" ends it and takes the address file away, "back" starts it again on the same
 * port and writes the file when it serves. The data node lives on and keeps its blocks.
 */
public final class Hdfs {
  public static void main(String[] arguments) throws Exception {
    File folder = new File(arguments[0]).getAbsoluteFile();
    File data = new File(folder, "data");
    int port = Integer.parseInt(arguments[1]);
    boolean fresh = !data.isDirectory();

    Configuration configuration = new Configuration();
    configuration.set(MiniDFSCluster.HDFS_MINIDFS_BASEDIR, data.getPath());
    configuration.set("hadoop.security.authentication", "simple");
    configuration.setInt("dfs.replication", 1);
    // The machine is shared with what is tested.
    configuration.setInt("dfs.namenode.handler.count", 3);
    configuration.setInt("dfs.datanode.handler.count", 3);
    configuration.setInt("dfs.namenode.service.handler.count", 1);
    // Tests write files of a few bytes; the default minimum for a block is one MiB.
    configuration.setLong("dfs.namenode.fs-limits.min-block-size", 0);
    configuration.setBoolean("dfs.permissions.enabled", true);

    MiniDFSCluster cluster = new MiniDFSCluster.Builder(configuration).nameNodePort(port).numDataNodes(1).format(fresh).build();
    cluster.waitActive();
    Path address = new File(folder, "address").toPath();
    tell(address, cluster);

    BufferedReader commands = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
    for (String command = commands.readLine(); command != null; command = commands.readLine()) {
      if (command.equals("away")) {
        cluster.shutdownNameNode(0);
        Files.deleteIfExists(address);
      } else if (command.equals("back")) {
        // Its own patience ends after ten seconds, and the data node may need longer to come back to it.
        cluster.restartNameNode(0, false);
        while (!cluster.isClusterUp()) {
          Thread.sleep(100);
        }
        cluster.waitActive();
        tell(address, cluster);
      }
    }
    // Nobody is there to command.
    Thread.sleep(Long.MAX_VALUE);
  }

  private static void tell(Path address, MiniDFSCluster cluster) throws IOException {
    Path part = address.resolveSibling("address.part");
    Files.write(part, (cluster.getURI() + "\n").getBytes(StandardCharsets.UTF_8));
    Files.move(part, address, StandardCopyOption.ATOMIC_MOVE);
  }
}
